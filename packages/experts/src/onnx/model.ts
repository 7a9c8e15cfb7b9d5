import { ProtobufWriter } from './protobuf.js'

/** One f32 tensor at the border of a graph. A string dimension is symbolic: its size is known only when the graph runs. */
export interface OnnxValue {
  readonly name: string
  readonly shape: readonly (number | string)[]
}

/** One operator of a graph. Attributes are integers, the only kind needed here. */
export interface OnnxNode {
  readonly operator: string
  readonly inputs: readonly string[]
  readonly outputs: readonly string[]
  readonly attributes?: Readonly<Record<string, number>>
}

/** A graph over f32 tensors, its nodes in an order in which they can run. */
export interface OnnxGraph {
  readonly name: string
  readonly inputs: readonly OnnxValue[]
  readonly outputs: readonly OnnxValue[]
  readonly nodes: readonly OnnxNode[]
}

const irVersion = 8
const operatorSet = 17
const elementTypeFloat = 1
const attributeTypeInteger = 2

/** The bytes of an ONNX model file (IR version 8, operator set 17) that holds `graph`. */
export function encodeOnnxModel(graph: OnnxGraph): Uint8Array {
  return new ProtobufWriter()
    .integer(1, irVersion)
    .text(2, 'moe-ep')
    .message(7, encodeGraph(graph))
    .message(8, new ProtobufWriter().text(1, '').integer(2, operatorSet))
    .finish()
}

function encodeGraph(graph: OnnxGraph): ProtobufWriter {
  const message = new ProtobufWriter()
  for (const node of graph.nodes) message.message(1, encodeNode(node))
  message.text(2, graph.name)
  for (const input of graph.inputs) message.message(11, encodeValue(input))
  for (const output of graph.outputs) message.message(12, encodeValue(output))
  return message
}

function encodeNode(node: OnnxNode): ProtobufWriter {
  const message = new ProtobufWriter()
  for (const input of node.inputs) message.text(1, input)
  for (const output of node.outputs) message.text(2, output)
  message.text(4, node.operator)
  for (const [name, value] of Object.entries(node.attributes ?? {})) {
    message.message(5, new ProtobufWriter().text(1, name).integer(3, value).integer(20, attributeTypeInteger))
  }
  return message
}

function encodeValue(value: OnnxValue): ProtobufWriter {
  const shape = new ProtobufWriter()
  for (const size of value.shape) {
    const dimension = new ProtobufWriter()
    shape.message(1, typeof size === 'number' ? dimension.integer(1, size) : dimension.text(2, size))
  }
  const tensor = new ProtobufWriter().integer(1, elementTypeFloat).message(2, shape)
  return new ProtobufWriter().text(1, value.name).message(2, new ProtobufWriter().message(1, tensor))
}
