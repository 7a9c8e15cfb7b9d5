/** The push by one kernel on as many multiprocessors as the operation has: reports compare with it besides the fastest way. */
export const pushOnSameSms = 'push, same SMs'
