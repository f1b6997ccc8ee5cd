"""Labels of image configs that this server writes and reads itself."""

BASE = "faas.base"  # of a function's image: the reference of the runtime base that it was pushed on
BASE_INPUTS = "faas.base.inputs"  # of a runtime base: a hash of everything that it was made of
# Of a runtime base whose client can be started before it is known for which function: which protocol it speaks then.
BASE_STEM = "faas.base.stem"
STEM_PROTOCOL = "1"
