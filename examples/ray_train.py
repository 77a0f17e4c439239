"""Train the network of multi_worker.py with Ray Train, which starts the workers and tells each who the others are.

    pip install "keras_lsb[ray]"
    python examples/ray_train.py --workers 2

Without --address it runs on this machine; `--address auto` joins the machine's Ray cluster. Workers on several machines
need --output in a folder that they share. When a worker dies, Ray starts all of them again, up to three times, and they
continue from the last epoch.
"""

import os
from pathlib import Path

import ray
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer

FLAVOUR = "TF_USE_LEGACY_KERAS"


def train_loop_per_worker(config: dict) -> None:
    """What every worker runs, in the flavour of Keras of the process that started the training: Ray sets tf_keras."""
    os.environ[FLAVOUR] = config["flavour"]
    import multi_worker
    import tensorflow as tf

    from keras_lsb import distribute

    multi_worker.common.set_threads(config["arguments"].threads)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    distribute.enable_multi_worker_fit()
    report = tf.keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ray.train.report({"epoch": epoch} | logs)
    )
    (seed,) = config["arguments"].seeds
    result = multi_worker.train(config["arguments"], strategy, seed, callbacks=[report])
    # Every worker has to report. Ray keeps the metrics that come with a checkpoint: the model, from the chief.
    folder = multi_worker.folder_of(config["arguments"], seed) / "model"
    checkpoint = Checkpoint.from_directory(str(folder)) if ray.train.get_context().get_world_rank() == 0 else None
    ray.train.report({"accuracy": result["accuracy"]}, checkpoint=checkpoint)


def main() -> None:
    import multi_worker

    parser = multi_worker.make_parser(__doc__)
    parser.add_argument("--address", help="of a Ray cluster; without it, Ray starts on this machine")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    arguments = parser.parse_args()
    if len(arguments.seeds) > 1:
        parser.error("Ray Train keeps one result for each run: pass one of --seeds")
    arguments.output = arguments.output.resolve()
    if arguments.address:
        ray.init(arguments.address, runtime_env={"working_dir": str(Path(__file__).parent)})
    else:
        ray.init(num_cpus=arguments.workers)
    try:
        trainer = TensorflowTrainer(
            train_loop_per_worker,
            train_loop_config={"arguments": arguments, "flavour": os.environ.get(FLAVOUR, "0")},
            scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
            run_config=RunConfig(
                name="digits", storage_path=str(arguments.output / "ray"), failure_config=FailureConfig(max_failures=3)
            ),
        )
        result = trainer.fit()
    finally:
        ray.shutdown()
    print(f"checkpoint: {result.checkpoint.path}")
    print(multi_worker.claim(result.metrics["accuracy"], arguments), flush=True)


if __name__ == "__main__":
    main()
