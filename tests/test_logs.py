"What a bar writes when nobody sits before it."
import os, subprocess, sys

SLOW = """
import time
from recon_nb import core
core._MINUTE = .3
with core.progress_bar(total=40, unit='img') as bar:
    for i in range(40): time.sleep(.025); bar.update(1); bar.set_postfix(loss=i); bar.set_description_str('D has won')
"""


def test_a_bar_in_a_pipe_is_a_line_a_minute():
    "A minute of a third of a second: some lines of a thousand refreshes, none drawn over another."
    env = {k: v for k,v in os.environ.items() if k != 'TQDM_DISABLE'}
    err = subprocess.run([sys.executable, '-c', SLOW], capture_output=True, text=True, env=env).stderr
    lines = err.splitlines()
    assert '\r' not in err and 3 <= len(lines) <= 8 and '0/40' in lines[0] and '40/40' in lines[-1] and 'D has won' in lines[-1]
    assert 'loss=39' in lines[-1] and all(lines)
