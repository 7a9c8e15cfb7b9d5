export const helpText = `moe-layer: runs a full Mixture-of-Experts layer over many ranks and checks it against a dense computation.

Usage
  moe-layer [options]
  moe-layer make-weights --out FILE.safetensors [--hidden N] [--intermediate N] [--experts N] [--topk N]
                         [--dtype bf16|f32] [--seed N]

Options
  --device cpu|auto         where ranks compute (auto: cpu)
  --ranks N                 ranks, one process each (8)
  --workers                 ranks are worker threads of one process instead
  --mode ht                 dispatch family (ht: high throughput)
  --model NAME|FILE         demo, or a .safetensors file that make-weights wrote (demo)
  --hidden N                size of a token (1024)
  --intermediate N          size inside an expert (512)
  --experts N               experts of all ranks together (32)
  --topk N                  experts of a token (4)
  --dtype bf16              what travels between ranks
  --tokens N|N,N,...        tokens of each rank (128)
  --routing KIND            uniform, skewed (rank 0 receives half), hot:RANK, empty:RANK (uniform)
  --seed N                  weights and tokens follow from it (1)
  --iters N                 measured passes, after one that is not (10)
  --timeout-ms N            deadline of every wait for a peer (60000)
  --json                    print one JSON object and nothing else
  --trace FILE.json         write a timeline for chrome://tracing or Perfetto
  --collect-garbage         collect garbage between passes
  -h, --help                this text

Exit code 0 only when the result is within its tolerance.`
