"""Training of a LoRA; `sdlora.training.train` is the loop.

`trainer` decides what is due after a step, `train_state` holds the numbers and takes the steps,
`skip_nonfinite` leaves out bad steps, `loss_log` reads losses back, `out_of_memory` retries with
less memory, `checkpoints` keeps the state on disk and exports the LoRA, `validation` measures,
`sample_images` shows.
"""
