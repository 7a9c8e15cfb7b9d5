import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { pathToFileURL } from 'node:url'

const programs = ['chromium', 'chromium-browser', 'google-chrome']

/** Why no browser can be used here, or `true`. */
export function probeChromium(): true | string {
  return chromium() === undefined ? `none of ${programs.join(', ')} is on PATH` : true
}

function chromium(): string | undefined {
  return programs.find((program) => {
    try {
      execFileSync(program, ['--version'], { stdio: 'ignore', timeout: 20_000 })
      return true
    } catch {
      return false
    }
  })
}

export interface PageOptions {
  /** Part of the address behind `#`. */
  readonly hash?: string
  readonly width?: number
  readonly dark?: boolean
  /** Runs in the page after its own script; gives plain data. Not with the page's policy, which allows only its own script. */
  readonly inspect?: string
}

export interface OpenedPage {
  /** The document after its scripts have run. */
  readonly dom: string
  /** What the browser's console showed. */
  readonly messages: readonly string[]
  /** What `inspect` returned. */
  readonly found: unknown
}

const deadlineMs = 45_000

/** Opens a page from a file in a browser of its own, waits until it has loaded and gives what became of it. */
export async function openPage(html: string, options: PageOptions = {}): Promise<OpenedPage> {
  const { hash = '', width = 1280, dark = false, inspect } = options
  const folder = await mkdtemp(join(tmpdir(), 'moe-layer-browser-'))
  try {
    const file = join(folder, 'page.html')
    await writeFile(file, inspect === undefined ? html : withInspection(html, inspect))
    const { stdout, stderr } = await runChromium([
      ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-dev-shm-usage'],
      ...['--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars'],
      ...[`--user-data-dir=${join(folder, 'profile')}`, `--window-size=${width},1000`, '--enable-logging=stderr'],
      ...(dark ? ['--blink-settings=preferredColorScheme=0'] : []),
      ...['--dump-dom', `${pathToFileURL(file).href}${hash}`],
    ])
    const messages = stderr.split('\n').filter((line) => /:CONSOLE[:(]/.test(line))
    const outcome = /<pre id="outcome">(.*?)<\/pre>/s.exec(stdout)?.[1]
    return { dom: stdout, messages, found: outcome === undefined ? undefined : JSON.parse(decodeURIComponent(outcome)) }
  } finally {
    await rm(folder, { recursive: true, force: true, maxRetries: 5 })
  }
}

function withInspection(html: string, inspect: string): string {
  const script =
    `<script>const pre = document.createElement('pre'); pre.id = 'outcome';` +
    `pre.textContent = encodeURIComponent(JSON.stringify((() => {${inspect}})())); document.body.append(pre)</script>`
  return html
    .replace(/<meta http-equiv="Content-Security-Policy"[^>]*>/, '')
    .replace('</body>', () => `${script}</body>`)
}

/** A browser is many processes: past the deadline the whole group ends. */
async function runChromium(args: readonly string[]): Promise<{ stdout: string; stderr: string }> {
  const child = spawn(chromium()!, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true })
  const timer = setTimeout(() => process.kill(-child.pid!, 'SIGKILL'), deadlineMs)
  try {
    const [[exitCode, signal], stdout, stderr] = await Promise.all([
      once(child, 'close'),
      text(child.stdout),
      text(child.stderr),
    ])
    if (exitCode !== 0) throw new Error(`the browser ended with ${signal ?? exitCode}: ${stderr.slice(-2000)}`)
    return { stdout, stderr }
  } finally {
    clearTimeout(timer)
  }
}
