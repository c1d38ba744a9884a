# The two commands in a container. setup.sh does what it does anywhere: same lock, same hashes.
#   docker build -t mimbench .
#   docker run --rm mimbench                                  # ./run_all.sh --demo
#   docker run --rm --entrypoint ./run_tests.sh mimbench      # all checks
# docs/howto/docker.md says how to give it GPUs, data and an output folder.
FROM python:3.12-slim-bookworm

# what the wheels and pages expect of a system: OpenCV's GLib, git for the commit in results
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git libglib2.0-0 libgl1 \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 mimbench
USER mimbench
WORKDIR /home/mimbench/mimbench

# the environment is a layer of its own: a change of the code does not install it again
COPY --chown=mimbench:mimbench setup.sh requirements.lock requirements-detectron2.lock ./
RUN ./setup.sh && rm -rf /home/mimbench/.cache

COPY --chown=mimbench:mimbench . .

ENTRYPOINT ["./run_all.sh"]
CMD ["--demo"]
