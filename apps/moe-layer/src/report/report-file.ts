import { constants } from 'node:fs'
import { access, mkdir, stat, writeFile } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { MoeEpError } from '@moe-ep/core'
import { renderReport } from './render-report.js'
import type { ReportData } from './report-data.js'

/**
 * Makes sure that the report can be written, before a long run starts; makes its folder. Gives the absolute path.
 * @throws ERR_MOE_EP_CONFIG when the path is a folder or cannot be written.
 */
export async function prepareReportFile(file: string): Promise<string> {
  const path = resolve(file)
  try {
    await mkdir(dirname(path), { recursive: true })
    const found = await stat(path).catch(() => undefined)
    if (found?.isDirectory()) throw new Error('it is a folder')
    await access(found === undefined ? dirname(path) : path, constants.W_OK)
    return path
  } catch (error) {
    const { message } = error as Error
    throw new MoeEpError('ERR_MOE_EP_CONFIG', `--report: cannot write ${path}: ${message}`, { cause: error })
  }
}

/** Writes the report to a path that `prepareReportFile` gave. */
export async function writeReport(path: string, data: ReportData): Promise<void> {
  await writeFile(path, renderReport(data))
}
