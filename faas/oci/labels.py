"""Labels of image configs that this server writes and reads itself."""

BASE = "faas.base"  # of a function's image: the reference of the runtime base that it was pushed on
BASE_INPUTS = "faas.base.inputs"  # of a runtime base: a hash of everything that it was made of
# Of a runtime base whose client can be started before it is known for which function: which protocol it speaks then.
BASE_STEM = "faas.base.stem"
STEM_PROTOCOL = "1"
DEV = "faas.dev"  # of an image whose topmost layer is another one at the next save of a file
# Of a runtime base, and of what stands on it: the program (one of the command's words) that takes the variables of
# secrets from their files by itself, by SECRETS_VARIABLE of its environment: "DB_PASSWORD=db-password,…".
SECRETS_READER = "faas.secrets.reader"
SECRETS_VARIABLE = "FAAS_SECRETS"
