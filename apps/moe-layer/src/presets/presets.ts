import { sigmoidGate, softmaxGate } from '../gates/gate.js'
import type { ModelPreset } from './model-preset.js'

/** What Qwen3's layers and the demo have in common. */
const qwen3 = {
  gate: softmaxGate,
  correctionBias: false,
  activation: 'silu',
  sharedExperts: 0,
  naming: 'mlp',
  firstMoeLayer: 0,
  weightsDType: 'bf16',
} as const

/** What DeepSeek-V3 and those that follow it have in common. */
const deepseek = { ...qwen3, correctionBias: true, sharedExperts: 1, weightsDType: 'fp8' } as const

const oneGroup = { count: 1, kept: 1 }

const all: readonly ModelPreset[] = [
  { name: 'demo', ...qwen3, shape: { hidden: 1024, intermediate: 512, experts: 32, topk: 4 } },
  {
    ...{ name: 'deepseek-v3', ...deepseek, firstMoeLayer: 3 },
    shape: { hidden: 7168, intermediate: 2048, experts: 256, topk: 8 },
    gate: sigmoidGate({ count: 8, kept: 4 }, 2.5),
  },
  {
    ...{ name: 'kimi-k2', ...deepseek, firstMoeLayer: 1 },
    shape: { hidden: 7168, intermediate: 2048, experts: 384, topk: 8 },
    gate: sigmoidGate(oneGroup, 2.827),
  },
  { name: 'qwen3-235b-a22b', ...qwen3, shape: { hidden: 4096, intermediate: 1536, experts: 128, topk: 8 } },
  { name: 'qwen3-30b-a3b', ...qwen3, shape: { hidden: 2048, intermediate: 768, experts: 128, topk: 8 } },
  {
    ...{ name: 'mixtral-8x7b', ...qwen3, naming: 'block_sparse_moe' },
    shape: { hidden: 4096, intermediate: 14336, experts: 8, topk: 2 },
  },
  {
    ...{ name: 'glm-4.5', ...deepseek, firstMoeLayer: 3, weightsDType: 'bf16' },
    shape: { hidden: 5120, intermediate: 1536, experts: 160, topk: 8 },
    gate: sigmoidGate(oneGroup, 2.5),
  },
]

/** Models whose gate, sizes, shared expert, tensor names and weight format are all met, by name. */
export const modelPresets: ReadonlyMap<string, ModelPreset> = new Map(all.map((preset) => [preset.name, preset]))
