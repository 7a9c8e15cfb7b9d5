import type { Activation, Experts, QuantScheme } from '@moe-ep/experts'
import type { PrepareAndFinalize } from './prepare-and-finalize.js'

/** What a layer will ask of its parts. What is absent is not checked. */
export interface LayerConfig {
  readonly deviceKind?: string
  /** What the experts are told to compute. @default silu */
  readonly activation?: Activation
  readonly hidden?: number
  readonly intermediate?: number
  readonly topk?: number
  readonly topkIdxDtype?: 'i32' | 'i64'
  readonly maxNumTokens?: number
  readonly applyRouterWeightOnInput?: boolean
}

/** Why two parts do not go together. */
export interface Incompatibility {
  /** Which part, or which value of the configuration, does not fit. */
  readonly argument: string
  readonly expected: string
  readonly received: unknown
}

type Check = (
  parts: { readonly prepareAndFinalize: PrepareAndFinalize; readonly experts: Experts },
  config: LayerConfig,
) => Incompatibility | undefined

/** In the order in which reasons are given. */
const checks: readonly Check[] = [
  function device({ experts: { deviceKinds } }, { deviceKind }) {
    if (deviceKind === undefined || deviceKinds === undefined || deviceKinds.includes(deviceKind)) return undefined
    return { argument: 'experts', expected: `that run on ${deviceKind}`, received: deviceKinds.join(', ') }
  },
  function activation({ experts: { activations = ['silu'] } }, { activation = 'silu' }) {
    if (activations.includes(activation)) return undefined
    return { argument: 'experts', expected: `activation ${activation}`, received: activations.join(', ') }
  },
  function quantScheme({ prepareAndFinalize, experts }) {
    const { quantSchemes = ['none'], expectsUnquantizedInputs = false } = experts
    const delivered: QuantScheme = expectsUnquantizedInputs ? 'none' : (prepareAndFinalize.quantScheme ?? 'none')
    if (quantSchemes.includes(delivered)) return undefined
    return {
      argument: 'experts',
      expected: `rows quantised as ${delivered}, which prepare delivers`,
      received: quantSchemes.join(', '),
    }
  },
  function deferredQuant({ prepareAndFinalize, experts }) {
    const { supportsDeferredQuant = false, quantScheme = 'none' } = prepareAndFinalize
    if (experts.expectsUnquantizedInputs !== true || supportsDeferredQuant || quantScheme === 'none') return undefined
    return {
      argument: 'experts',
      expected: 'rows that prepare has quantised',
      received: 'experts that quantise by themselves',
    }
  },
  function expertParallel({ prepareAndFinalize: { numDispatchers }, experts: { supportsExpertParallel = true } }) {
    if (supportsExpertParallel || !(numDispatchers > 1)) return undefined
    return {
      argument: 'experts',
      expected: `a part of the experts, for ${numDispatchers} ranks`,
      received: 'experts that must own all',
    }
  },
  function hidden({ experts: { sizeMultiple = 1 } }, config) {
    for (const argument of ['hidden', 'intermediate'] as const) {
      const size = config[argument]
      if (size !== undefined && size % sizeMultiple !== 0)
        return { argument, expected: `a multiple of ${sizeMultiple}`, received: size }
    }
    return undefined
  },
  function activationFormat({ prepareAndFinalize: { activationFormat }, experts }) {
    if (experts.activationFormat === activationFormat) return undefined
    const expected = `activation format ${activationFormat}, which prepare delivers`
    return { argument: 'experts', expected, received: experts.activationFormat }
  },
  function batchedRows({ prepareAndFinalize: { activationFormat, maxNumTokensPerRank, numDispatchers }, experts }) {
    if (activationFormat !== 'batchedExperts' || maxNumTokensPerRank === undefined) return undefined
    const { maxNumTokens = Infinity, numDispatchers: dispatchers = 1 } = experts
    const rows = maxNumTokensPerRank * numDispatchers
    if (maxNumTokens * dispatchers >= rows) return undefined
    return { argument: 'experts', expected: `${rows} rows of an expert`, received: maxNumTokens * dispatchers }
  },
  function scaleFormat({ prepareAndFinalize: { quantScheme = 'none', scaleFormat = 'f32' }, experts }) {
    const { scaleFormats = ['f32', 'ue8m0'] } = experts
    const left = quantScheme !== 'fp8-block' || experts.expectsUnquantizedInputs === true
    if (left || scaleFormats.includes(scaleFormat)) return undefined
    return {
      argument: 'experts',
      expected: `scales as ${scaleFormat}, which prepare delivers`,
      received: scaleFormats.join(', '),
    }
  },
  function weighting({ prepareAndFinalize: { weightAndReduceKinds }, experts: { weightAndReduce } }) {
    if (weightAndReduceKinds === undefined || weightAndReduceKinds.includes(weightAndReduce.kind)) return undefined
    const expected = `weights and sums left to ${weightAndReduceKinds.join(' or ')}`
    return { argument: 'experts', expected, received: weightAndReduce.kind }
  },
  function topkIdxDtype({ prepareAndFinalize: { topkIdxDtype: wanted } }, { topkIdxDtype: given }) {
    if (wanted === undefined || given === undefined || wanted === given) return undefined
    return { argument: 'topkIdxDtype', expected: wanted, received: given }
  },
  function numTokens({ prepareAndFinalize: { maxNumTokensPerRank: most } }, { maxNumTokens }) {
    if (most === undefined || maxNumTokens === undefined || maxNumTokens <= most) return undefined
    return { argument: 'maxNumTokens', expected: `at most ${most}`, received: maxNumTokens }
  },
  function weightOnInput(_, { applyRouterWeightOnInput = false, topk }) {
    if (!applyRouterWeightOnInput || topk === undefined || topk === 1) return undefined
    return {
      argument: 'applyRouterWeightOnInput',
      expected: 'true for top-1 routing only',
      received: `true for top-${topk}`,
    }
  },
]

/**
 * The first reason why these parts cannot make a layer, or undefined. Looked at in this order: device, activation, quantised form of
 * the rows, who quantises, expert parallelism, sizes, activation format, batched rows, form of scales, who weighs, width of ids, tokens,
 * weight on input.
 */
export function checkCompatibility(
  prepareAndFinalize: PrepareAndFinalize,
  experts: Experts,
  config: LayerConfig = {},
): Incompatibility | undefined {
  for (const check of checks) {
    const reason = check({ prepareAndFinalize, experts }, config)
    if (reason !== undefined) return reason
  }
  return undefined
}
