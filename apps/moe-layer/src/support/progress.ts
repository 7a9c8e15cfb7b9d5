/** How far a long piece of work is; `done` grows up to `total`. */
export interface Progress {
  readonly done: number
  readonly total: number
}

/** Hears of progress now and then, the last time with `done === total`. */
export type OnProgress = (progress: Progress) => void
