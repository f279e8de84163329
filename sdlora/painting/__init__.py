"""From a request to pictures, by an open family; `sdlora.generate` is who asks for it.

`sheet` is what the images of a request are made of, `cast` finds the LoRAs that they name, `course`
reads their texts over the steps, `passes` takes a batch from noise to latents with `denoise`, and
`painter` does one after the other. `album` keeps the pictures with what they remember.
"""
