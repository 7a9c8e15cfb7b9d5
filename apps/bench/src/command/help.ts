import { operationNames } from './operation-names.js'

export const helpText = `bench: measures every operation of the moe-ep packages against ceilings measured in the same run.

Usage
  bench [options]

Options
  --device cpu|cuda|cuda:N|auto
                        where to measure: cuda takes for each rank the GPU of its number, auto is cpu
  --share-gpus          several ranks may use one GPU
  --launch graph|plan|eager
                        on cuda: how the calls of an iteration are launched (graph); operations between ranks are called one by one
  --preset NAME         sizes: default (1024 tokens, hidden 2048, top-8 of 64) or h7168 (4096 tokens, hidden 7168, top-8 of 256)
  --ops NAME,NAME|all   full names, or the part before or after the dot (all); all leaves out intranode-ht and low-latency
                        where --world is not --ranks, low-latency for more than 1024 tokens, and
                        its rows of fp4 for sizes that are no multiple of 32
  --ranks N             ranks, one process each (2)
  --world N             ranks that routing is drawn for, of which --ranks run (as many as those): what one GPU does in a larger world
  --routing uniform|skewed
                        all experts are equally likely, or half of every token's are rank 0's (uniform)
  --protocol rank|expert
                        of low-latency: a row travels once to a rank, or for each expert (rank)
  --tokens N            tokens of each rank
  --hidden N            elements of a token, a multiple of 16
  --topk N              experts of a token
  --experts N           experts of all ranks together
  --threads N           threads of each rank (cores divided by ranks)
  --sms N               multiprocessors that a dispatch or combine between ranks uses on cuda (the library's default)
  --iters N             measured iterations (30)
  --warmup N            iterations before them (5)
  --seed N              inputs and routing follow from it (1)
  --timeout-ms N        deadline of every wait for a peer (60000)
  --json                print one JSON object and nothing else
  -h, --help            this text

Operations
${operationNames.map((name) => `  ${name}`).join('\n')}

Exit code 0 only when every result was correct.`
