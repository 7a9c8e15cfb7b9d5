import { modelPresets } from '../presets/presets.js'

export const helpText = `moe-layer: runs a full Mixture-of-Experts layer over many ranks and checks it against a dense computation.

Usage
  moe-layer [options]
  moe-layer make-weights --out FILE.safetensors [--preset NAME] [--layer N] [--hidden N] [--intermediate N] [--experts N]
                         [--topk N] [--dtype bf16|f32|fp8] [--seed N]

Options
  --device cpu|cuda|auto    where rows are dispatched and combined: cuda wants a GPU for each rank (auto: cpu);
                            experts compute on the host in any case
  --share-gpus              several ranks may use one GPU
  --ranks N                 ranks, one process each (8)
  --workers                 ranks are worker threads of one process instead
  --mode ht|ll              dispatch family: high throughput, or low latency for up to 1024 tokens of a rank (ht)
  --protocol rank|expert    with --mode ll: a token's row goes once to each rank with some of its experts, whose sum comes
                            home, or to each expert (rank)
  --overlap N               cuts the tokens of a rank into N micro-batches: one computes while others travel (1)
  --graph                   with --mode ll: records dispatch and combine once and replays them, around the experts
  --model NAME|FILE         one of the models below, or a .safetensors file with a layer of one of them (demo)
  --preset NAME             the model that FILE belongs to, where the file does not say
  --layer N                 number of the layer in the names of the tensors (the first with experts)
  --hidden N                size of a token (the model's; 1024 for demo)
  --intermediate N          size inside an expert (the model's; 512 for demo)
  --experts N               experts of all ranks together (the model's; 32 for demo)
  --topk N                  experts of a token (the model's; 4 for demo)
  --dtype bf16|fp8          what travels to the experts: bf16, or fp8 with scales (bf16)
  --tokens N|N,N,...        tokens of each rank (128)
  --routing KIND            uniform, skewed (rank 0 receives half), hot:RANK, empty:RANK (uniform)
  --seed N                  weights and tokens follow from it (1)
  --iters N                 measured passes, after one that is not (10)
  --timeout-ms N            deadline of every wait for a peer (60000)
  --json                    print one JSON object and nothing else
  --report FILE.html        write a report to look at in a browser
  --trace FILE.json         write a timeline for chrome://tracing or Perfetto
  --collect-garbage         collect garbage between passes
  -h, --help                this text

Models
  ${[...modelPresets.keys()].join(', ')}
  Each stands for its gate, sizes, shared expert, tensor names and weight format. What needs more memory or disk space than there
  is is refused before it starts.

Exit code 0 only when the result is within its tolerance.`
