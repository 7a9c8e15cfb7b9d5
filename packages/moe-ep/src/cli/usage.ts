/** What `moe-ep --help` prints. */
export const usage = `Usage:
  moe-ep run -n RANKS [options] SCRIPT [ARGUMENT...]   run SCRIPT once per rank
  moe-ep devices                                       list the devices of this machine
  moe-ep --help | --version

Options of run:
  -n, --ranks RANKS       number of ranks
      --nodes NODES       split the ranks into this many nodes, as if each were a machine of its own
      --threads           ranks are worker threads of one process instead of processes
      --timeout-ms MS     end all ranks after so many milliseconds

Exit code 0 only if every rank ended with 0; 1 if a rank failed; 2 for a wrong command line.
`
