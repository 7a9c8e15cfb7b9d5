// Runs on the built package, in a process of its own whose limits the test sets.
import { readFileSync } from 'node:fs'
import { setImmediate as turn } from 'node:timers/promises'
import { getDevice } from '../dist/index.js'

const cpu = getDevice('cpu')
const kilobytesOf = (name) =>
  Number(new RegExp(`${name}:\\s*(\\d+)`).exec(readFileSync('/proc/self/status', 'utf8'))[1])

const scenarios = {
  async measure() {
    await cpu.createStream({ threads: 2 }).close()
    console.log(kilobytesOf('VmPeak'))
  },
  async threads() {
    for (let i = 0; i < 3; i++) {
      try {
        cpu.createStream({ threads: 256 })
      } catch ({ code, message }) {
        console.log(code, message.includes('256 threads'))
      }
    }
    const stream = cpu.createStream({ threads: 2 })
    stream.delay(1)
    await stream.close()
    console.log('works')
  },
  async garbage() {
    // Not touched, so that they take addresses only.
    const before = kilobytesOf('VmPeak')
    for (let i = 0; i < 800; i++) {
      const memory = cpu.allocate(2 ** 26)
      if (i % 4 === 0) memory.close()
      if (i % 4 === 3) await turn()
    }
    console.log(kilobytesOf('VmPeak') - before < 10_000_000)
  },
  async streams() {
    // Forgotten with work queued: it still runs, and their threads end without being asked.
    const events = []
    for (let i = 0; i < 40; i++) {
      const stream = cpu.createStream({ threads: 4 })
      stream.delay(1000)
      events.push(stream.record())
    }
    for (let i = 0; i < 200 && kilobytesOf('Threads') > 60; i++) {
      gc()
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    await Promise.all(events.map((event) => event.synchronize()))
    console.log(kilobytesOf('Threads') <= 60)
  },
}

await scenarios[process.argv[2]]()
