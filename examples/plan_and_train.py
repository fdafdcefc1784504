"""Measure the ranks, plan who computes what, train by the plan, save and load.

Problem: how fast the ranks are is not known beforehand, and time does not follow the number of
filters in a straight line. So the network's own layers are measured on every rank, and the plan
with the least predicted time of a step is chosen. Here all ranks share one machine: rank 1 is told
to behave like a device of half the speed while it is measured, rank 2 like one of a third.

Cost: about 7 seconds of a core for each of 3 ranks, 2 of them for measuring. It writes plan.json
and run.h5 to the folder that it is given (runs/planned without one).

    .venv/bin/mpirun -n 3 .venv/bin/python -m mpi4py examples/plan_and_train.py runs/planned
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import hetmp
from hetmp import checkpoint, data, models, optim
from hetmp.planner import Budget, PlanOptions, make_plan, profile_model

BATCH_SIZE, EPOCHS = 256, 4

group = hetmp.Group()
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/planned")
digits = data.load("digits")

# --- measure, and plan

with torch.device("meta"):  # sizes are looked at, values are not
    outline = models.build("digits", digits.input_shape, digits.classes)
    batch = torch.empty(BATCH_SIZE, *digits.input_shape)
budget = Budget(seconds=2, schemes=())
profile = profile_model(outline, batch, group, budget=budget, slowdown=1.0 + group.rank)

text = ""
with group.together():  # an error on one rank becomes an error on all of them
    if group.is_root:  # unlike processors may round unlike: rank 0's plan is everyone's
        # A plan for so small a network may leave slow ranks out. Here all are to take part;
        # docs/library.md has what a program does with those that are left out.
        options = PlanOptions(schemes=False, leave_out=False)
        planned = make_plan(hetmp.read_graph(outline, batch), profile, options)
        text = planned.plan.model_dump_json()
        folder.mkdir(parents=True, exist_ok=True)
        planned.plan.save(folder / "plan.json")
plan = hetmp.Plan.model_validate_json(group.broadcast_text(text))
group.say(f"planned channels by rank: {plan.held}")

# --- train by the plan

torch.manual_seed(0)
model = hetmp.slice_model(models.build("digits", digits.input_shape, digits.classes), plan)
optimizer = optim.make_optimizer(model, "adamw", lr=0.005, options={})
losses = []
for epoch in range(EPOCHS):
    for images, labels in data.batches(digits.train, BATCH_SIZE, seed=0, epoch=epoch):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
group.say(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")

# --- save, and load into a network that is cut in another way

checkpoint.save(folder / "run.h5", model, optimizer, extra={"step": len(losses)})
fresh = outline.to_empty(device="cpu")  # what its memory holds does not matter: all is loaded
other = hetmp.slice_model(fresh, [1.0] * group.size)
optimizer = optim.make_optimizer(other, "adamw", lr=0.005, options={})
extra = checkpoint.load(folder / "run.h5", other, optimizer)  # training can go on from here
saved, loaded = hetmp.merge_model(model), hetmp.merge_model(other)
same = all(torch.equal(loaded[name], saved[name]) for name in saved)
group.say(f"loaded step {extra['step']} in shares {other.hetmp.plan.held}: same numbers {same}")
