import { type Experts, noWeightAndReduce } from '@moe-ep/experts'
import { describe, expect, test } from 'vitest'
import { checkCompatibility, type LayerConfig, ModularKernel, type PrepareAndFinalize } from '../src/index.js'

const experts: Experts = {
  ...{ activationFormat: 'standard', weightAndReduce: noWeightAndReduce },
  ...{ apply: async () => {}, close: async () => {} },
}
const prepareAndFinalize: PrepareAndFinalize = {
  ...{ activationFormat: 'standard', topkIdxDtype: undefined, maxNumTokensPerRank: undefined, numDispatchers: 2 },
  outputIsReduced: true,
  ...{ prepare: () => Promise.reject(new Error()), finalize: async () => {}, release: () => {} },
}

/** Each with one thing more wrong than the one below: the first reason must win over all that follow. */
const reasons: [
  string,
  string,
  { side?: Partial<PrepareAndFinalize>; experts?: Partial<Experts>; config?: LayerConfig },
][] = [
  ['the device', 'experts', { experts: { deviceKinds: ['cuda'] }, config: { deviceKind: 'cpu' } }],
  ['the activation', 'experts', { config: { activation: 'gelu' } }],
  ['the form of the rows', 'experts', { side: { quantScheme: 'fp8-block' } }],
  ['expert parallelism', 'experts', { experts: { supportsExpertParallel: false } }],
  ['the hidden size', 'hidden', { experts: { sizeMultiple: 128 }, config: { hidden: 2880 } }],
  ['the intermediate size', 'intermediate', { experts: { sizeMultiple: 128 }, config: { intermediate: 2880 } }],
  ['the format', 'experts', { experts: { activationFormat: 'batchedExperts' } }],
  ['who weighs', 'experts', { side: { weightAndReduceKinds: ['delegate'] } }],
  ['the width of ids', 'topkIdxDtype', { side: { topkIdxDtype: 'i64' }, config: { topkIdxDtype: 'i32' } }],
  ['the tokens', 'maxNumTokens', { side: { maxNumTokensPerRank: 4 }, config: { maxNumTokens: 5 } }],
  ['weights on the input', 'applyRouterWeightOnInput', { config: { applyRouterWeightOnInput: true, topk: 2 } }],
]

const words = [
  /cpu/,
  /gelu/,
  /fp8-block/,
  /2 ranks/,
  /128/,
  /128/,
  /format standard/,
  /delegate/,
  /i64/,
  /at most 4/,
  /top-1/,
]

describe('checkCompatibility', () => {
  test('finds nothing wrong where nothing is', () => {
    expect(checkCompatibility(prepareAndFinalize, experts)).toBeUndefined()
    const config: LayerConfig = {
      deviceKind: 'cpu',
      hidden: 7,
      intermediate: 3,
      topk: 1,
      topkIdxDtype: 'i32',
      applyRouterWeightOnInput: true,
    }
    expect(checkCompatibility(prepareAndFinalize, { ...experts, deviceKinds: ['cpu'] }, config)).toBeUndefined()
  })

  test.each(reasons)('names %s', (_, argument, wrong) => {
    const at = reasons.findIndex(([, , other]) => other === wrong)
    const reason = checkCompatibility(
      { ...prepareAndFinalize, ...wrong.side },
      { ...experts, ...wrong.experts },
      wrong.config,
    )
    expect(reason).toMatchObject({ argument, expected: expect.stringMatching(words[at]!) })
  })

  test('names the first of all reasons that there are', () => {
    for (const [at, [, argument]] of reasons.entries()) {
      const rest = reasons.slice(at).map(([, , wrong]) => wrong)
      const all = {
        side: Object.assign({}, ...rest.map(({ side }) => side)),
        own: Object.assign({}, ...rest.map((wrong) => wrong.experts)),
        config: Object.assign({}, ...rest.map(({ config }) => config)),
      }
      const reason = checkCompatibility({ ...prepareAndFinalize, ...all.side }, { ...experts, ...all.own }, all.config)
      expect(reason).toMatchObject({ argument, expected: expect.stringMatching(words[at]!) })
    }
  })

  test('who quantises: experts that do it themselves need a prepare that can leave it to them', () => {
    const fp8 = { ...prepareAndFinalize, quantScheme: 'fp8-block' } as const
    const own = { ...experts, expectsUnquantizedInputs: true }
    expect(checkCompatibility(fp8, own)?.received).toMatch(/by themselves/)
    expect(checkCompatibility({ ...fp8, supportsDeferredQuant: true }, own)).toBeUndefined()
    expect(checkCompatibility(fp8, { ...experts, quantSchemes: ['none', 'fp8-block'] })).toBeUndefined()
  })

  test('scales of groups come in a form that the experts take', () => {
    const side = { ...prepareAndFinalize, quantScheme: 'fp8-block', scaleFormat: 'ue8m0-packed' } as const
    const fp8 = { ...experts, quantSchemes: ['fp8-block'] } as const
    expect(checkCompatibility(side, fp8)).toMatchObject({
      expected: expect.stringContaining('packed'),
      received: 'f32, ue8m0',
    })
    expect(checkCompatibility({ ...side, scaleFormat: 'ue8m0' }, fp8)).toBeUndefined()
    expect(checkCompatibility(side, { ...fp8, scaleFormats: ['ue8m0-packed'] })).toBeUndefined()
    // Rows that are not quantised have none.
    expect(checkCompatibility({ ...side, quantScheme: 'none' }, experts)).toBeUndefined()
  })

  test('batched experts need as many rows as all ranks can send', () => {
    const side = { ...prepareAndFinalize, activationFormat: 'batchedExperts', maxNumTokensPerRank: 8 } as const
    const batched = { ...experts, activationFormat: 'batchedExperts', maxNumTokens: 8 } as const
    expect(checkCompatibility(side, { ...batched, numDispatchers: 2 })).toBeUndefined()
    expect(checkCompatibility(side, { ...batched, numDispatchers: 1 })).toMatchObject({
      expected: '16 rows of an expert',
      received: 8,
    })
  })

  test('a kernel says the same', () => {
    const make = (): unknown => new ModularKernel(prepareAndFinalize, experts, { config: { activation: 'swigluOai' } })
    expect(make).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', message: expect.stringMatching(/swigluOai/) }),
    )
    const chunks = (): unknown => new ModularKernel(prepareAndFinalize, experts, { maxRowsPerChunk: 0 })
    expect(chunks).toThrow(expect.objectContaining({ details: { argument: 'maxRowsPerChunk' } }))
  })
})
