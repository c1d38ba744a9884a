"""One prepared run on a GPU, in parts: `bench/gpu/run.sh` there, `bench/gpu/pack.sh` before."""
