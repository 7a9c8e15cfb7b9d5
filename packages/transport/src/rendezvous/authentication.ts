import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'

export const nonceBytes = 32
export const proofBytes = 32

/**
 * Who proves: rank 0 (the hub) or a rank that dials it. Part of what is signed, so that a proof cannot be sent
 * back.
 */
export type Role = 'hub' | 'spoke'

/** Everything both sides said before either was believed; both proofs sign all of it. */
export interface Transcript {
  readonly spokeVersion: number
  readonly hubVersion: number
  readonly rank: number
  readonly spokeWorldSize: number
  readonly hubWorldSize: number
  readonly spokeNonce: Uint8Array
  readonly hubNonce: Uint8Array
}

/** A fresh challenge. */
export function createNonce(): Buffer {
  return randomBytes(nonceBytes)
}

/** Gives the HMAC-SHA256 by which `role` shows that it knows the secret. */
export function prove(secret: string, role: Role, transcript: Transcript): Buffer {
  const numbers = Buffer.alloc(20)
  const { spokeVersion, hubVersion, rank, spokeWorldSize, hubWorldSize } = transcript
  ;[spokeVersion, hubVersion, rank, spokeWorldSize, hubWorldSize].forEach((value, i) =>
    numbers.writeUInt32BE(value, i * 4),
  )
  return createHmac('sha256', secret)
    .update(`moe-ep rendezvous ${role}\n`)
    .update(numbers)
    .update(transcript.spokeNonce)
    .update(transcript.hubNonce)
    .digest()
}

/**
 * Whether `proof` shows that the other side, acting as `role`, knows the secret. Takes the same time for every
 * wrong proof.
 */
export function verify(secret: string, role: Role, transcript: Transcript, proof: Uint8Array): boolean {
  return proof.length === proofBytes && timingSafeEqual(prove(secret, role, transcript), proof)
}
