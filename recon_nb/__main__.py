"`python -m recon_nb` is `recon`."
import sys
from recon_nb.command import main

if __name__ == '__main__': sys.exit(main())
