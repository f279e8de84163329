"""The chapters of a training that `sdlora.train` tells as one story.

`under_way` is what a step brings and what is due after it. `learner` holds the numbers and takes
the steps, `guard` sees that nothing bad is applied, `ledger` reads what the device has computed,
`memory` makes do with less of it, `steady` sees that what is learnt still helps, `checkpoints`
keeps all of it on disk, `published` the LoRA under its name, `validation` measures what was learnt,
`samples` shows it.
"""
