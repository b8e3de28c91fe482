"""Learn a stream of tasks: `python ray_jobs/coin_stream.py --config FILE [--key value]`.

With `--plan` it prints what the run would need and starts nothing, `--plan.gpus 8` for that many
GPUs; its status is 1 if the run doesn't fit. With `--methods cmoe,lora,...` every one of them
learns the stream, with every one of `seeds`, and they are compared. The same as `cmoe run`,
`cmoe plan` and `cmoe compare`.
"""

import sys

from cmoe.cli.main import execute
from cmoe.cli.stream import coin_stream

if __name__ == "__main__":
    sys.exit(execute(coin_stream, "coin_stream.py"))
