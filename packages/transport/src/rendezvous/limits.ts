/** Version of everything on the wire after the first two messages, whose layout never changes. */
export const protocolVersion = 1

/** Largest world: keeps the table of nodes that rank 0 sends well inside one control frame. */
export const maxWorldSize = 4096

/** Shortest shared secret, in bytes of its UTF-8 form. */
export const minSecretBytes = 16

/** Largest frame body that is read from a connection that has proved nothing yet. */
export const unauthenticatedFrameBytes = 256

/** How many frames an unproved connection may have waiting for us; the handshake never needs more. */
export const unauthenticatedFrames = 2

/** How long an unproved connection may take to prove itself. */
export const handshakeTimeoutMs = 5_000

/** How many unproved connections rank 0 keeps open; the oldest goes when another comes. */
export const maxUnauthenticatedConnections = 256

/** Room for the fields in front of a payload, and for control frames when the payload limit is small. */
export const frameHeadroomBytes = 64 * 1024

/** Default limit of the payload that one rank may pass to one collective. */
export const defaultMaxFrameBytes = 64 * 1024 * 1024

/** Node's timers cannot wait longer. */
export const maxTimeoutMs = 2 ** 31 - 1

export const defaultTimeoutMs = 30_000

/** How long a rank waits for rank 0 to say who was missing before it reports a timeout by itself. */
export const verdictTimeoutMs = 1_000

/** How long sockets of a failed group may take to flush the reason to the others. */
export const farewellTimeoutMs = 1_000

/** Default wait of `close()`. */
export const closeTimeoutMs = 5_000

/** Longest label of a collective, in UTF-8 bytes. */
export const maxLabelBytes = 200
