import { operationNames } from './operation-names.js'

export const helpText = `bench: measures every operation of the moe-ep packages against ceilings measured in the same run.

Usage
  bench [options]

Options
  --device cpu|auto     where to measure (auto: cpu)
  --preset NAME         sizes: default (1024 tokens, hidden 2048, top-8 of 64) or h7168 (4096 tokens, hidden 7168, top-8 of 256)
  --ops NAME,NAME|all   full names, or the part before or after the dot (all)
  --ranks N             ranks, one process each (2)
  --tokens N            tokens of each rank
  --hidden N            elements of a token, a multiple of 16
  --topk N              experts of a token
  --experts N           experts of all ranks together
  --threads N           threads of each rank (cores divided by ranks)
  --iters N             measured iterations (30)
  --warmup N            iterations before them (5)
  --seed N              inputs and routing follow from it (1)
  --timeout-ms N        deadline of every wait for a peer (60000)
  --json                print one JSON object and nothing else
  -h, --help            this text

Operations
${operationNames.map((name) => `  ${name}`).join('\n')}

Exit code 0 only when every result was correct.`
