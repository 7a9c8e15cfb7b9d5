import { spawn } from 'node:child_process'

/** Ends a program with all of its children: each one started here leads a process group of its own. */
function killGroup(child) {
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch (error) {
    if (error.code !== 'ESRCH') throw error
  }
}

/**
 * Runs a program to its end and gives its standard output. Rejects with everything it wrote when it fails, and kills it
 * with all of its children when the deadline passes.
 * @param {string} program
 * @param {string[]} args
 * @param {{ cwd: string, seconds?: number, env?: Record<string, string> }} options
 * @returns {Promise<string>}
 */
export function runProgram(program, args, { cwd, seconds = 180, env = {} }) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd,
      detached: true,
      env: { ...process.env, NO_COLOR: '1', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let stdout = ''
    let both = ''
    let isLate = false
    child.stdout.setEncoding('utf8').on('data', (text) => {
      stdout += text
      both += text
    })
    child.stderr.setEncoding('utf8').on('data', (text) => (both += text))

    const deadline = setTimeout(() => {
      isLate = true
      killGroup(child)
    }, seconds * 1000)
    child.on('error', reject)
    child.on('exit', () => {
      // What it left running would keep our pipes open, and nothing may outlive it anyway.
      killGroup(child)
    })
    child.on('close', (code, signal) => {
      clearTimeout(deadline)
      if (code === 0) return resolve(stdout)
      const ending = isLate ? `took more than ${seconds} s` : `ended with ${signal ?? `exit code ${code}`}`
      reject(new Error(`${program} ${args.join(' ')} ${ending}\n${both.trimEnd()}`))
    })
  })
}
