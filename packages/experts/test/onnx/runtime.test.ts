import { afterEach, describe, expect, it, vi } from 'vitest'
import { loadOnnxRuntime } from '../../src/onnx/runtime.js'

const failWith = (message: string, code?: string) => () => Promise.reject(Object.assign(new Error(message), { code }))

describe('loadOnnxRuntime', () => {
  it.each([
    ["Cannot find package 'onnxruntime-node' imported from /app/index.js", 'ERR_MODULE_NOT_FOUND'],
    ["Cannot find module 'onnxruntime-node'\nRequire stack:\n- /app/index.cjs", 'MODULE_NOT_FOUND'],
  ])('says what to install when the package is absent: %s', async (message, code) => {
    const loading = loadOnnxRuntime(failWith(message, code))
    await expect(loading).rejects.toMatchObject({
      code: 'ERR_MOE_EP_UNSUPPORTED',
      message: expect.stringContaining('npm i onnxruntime-node'),
      cause: expect.objectContaining({ code }),
    })
  })

  it.each([
    ["Cannot find module '../bin/napi-v6/linux/riscv64/onnxruntime_binding.node'", 'MODULE_NOT_FOUND'],
    ["Cannot find module 'onnxruntime-common'", 'MODULE_NOT_FOUND'],
    ['libstdc++.so.6: version not found', 'ERR_DLOPEN_FAILED'],
    ['anything else', undefined],
  ])('does not call a broken package absent: %s', async (message, code) => {
    const loading = loadOnnxRuntime(failWith(message, code))
    await expect(loading).rejects.toMatchObject({
      code: 'ERR_MOE_EP_NATIVE_LOAD',
      message: expect.stringContaining(message),
    })
  })
})

describe('telemetry of the runtime', () => {
  afterEach(() => vi.unstubAllEnvs())

  it.each([
    [undefined, '1'],
    ['0', '0'],
  ])('where ORT_DISABLE_TELEMETRY is %s the runtime is loaded with %s', async (before, expected) => {
    vi.stubEnv('ORT_DISABLE_TELEMETRY', before)
    let seen: string | undefined
    await loadOnnxRuntime(async () => {
      seen = process.env['ORT_DISABLE_TELEMETRY']
      return {} as Awaited<ReturnType<typeof loadOnnxRuntime>>
    })
    expect(seen).toBe(expected)
  })
})
