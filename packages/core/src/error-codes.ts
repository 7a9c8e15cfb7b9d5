/**
 * Every error code that a moe-ep package can raise, with its meaning. Codes are stable; messages are not.
 * docs/errors.md carries the same list and a test keeps the two equal.
 */
export const errorCodes = {
  ERR_MOE_EP_ARGUMENT: 'An argument has the wrong type, shape, dtype, device or range. Nothing was started.',
  ERR_MOE_EP_UNSUPPORTED: 'The request is legal but this device, build or package cannot serve it.',
  ERR_MOE_EP_NATIVE_LOAD: 'A native addon could not be loaded; the message says what was tried and what to do.',
  ERR_MOE_EP_DUPLICATE_CORE: 'Two copies of @moe-ep/core, or one of another major version, met in one process.',
  ERR_MOE_EP_NO_DEVICE: 'The named device is not there; the message says why.',
  ERR_MOE_EP_OUT_OF_MEMORY:
    'Memory could not be allocated; the message gives the bytes, but not of room that an operation needs beside its results.',
  ERR_MOE_EP_RELEASED: 'A memory, tensor, stream, event, graph, lease or group was used after it was released.',
  ERR_MOE_EP_CAPTURE:
    'An operation that cannot be recorded was called during a graph capture, or a capture was misused.',
  ERR_MOE_EP_INTERNAL: 'An invariant of the library was broken: please report it.',
  ERR_MOE_EP_TIMEOUT: 'A wait passed its deadline; the message names rank, peer, operation and what was missing.',
  ERR_MOE_EP_ABORTED: 'An operation was cancelled by an AbortSignal, by close, or because its owner went away.',
  ERR_MOE_EP_AUTH: 'The other side of a rendezvous could not prove that it knows the shared secret.',
  ERR_MOE_EP_PROTOCOL: 'A peer sent something that the protocol does not allow, or ranks called different operations.',
  ERR_MOE_EP_CONNECT: 'A rendezvous could not be reached or set up.',
  ERR_MOE_EP_PEER_LOST: 'A peer process or its connection went away; the message names the rank.',
  ERR_MOE_EP_MISMATCH: 'Ranks called a collective with different arguments.',
  ERR_MOE_EP_CAPACITY: 'More rows arrived than the buffer was built for; the message gives the true count.',
  ERR_MOE_EP_NO_FREE_SLOT: 'All leases are in flight; combine or release one first.',
  ERR_MOE_EP_CONFIG: 'A command line, environment variable or configuration value is not valid.',
  ERR_MOE_EP_FILE_FORMAT: 'A file is truncated, oversized or not what its header says.',
  ERR_MOE_EP_CHECK_FAILED:
    'A computed result is wrong: `moe-layer` and `bench` report it, and callers may pass it to `refuseDispatch` and `refuseCombine`.',
  ERR_MOE_EP_LAUNCH: 'A launched rank failed; the message names it and how it ended.',
} as const

/** A stable, documented error code. */
export type ErrorCode = keyof typeof errorCodes
