"""200 faults that nobody chose: drawn by seed 0 from all places of the exported cells where a small operator fits, each judged
by its own page and by the tests named for its module.

    python tests/mutants/drawn.py                 # go on: judge those that are not judged yet, in the order they were drawn
    python tests/mutants/drawn.py --survivors     # judge again what survived
    python tests/mutants/drawn.py 17 42           # judge these again
    python tests/mutants/drawn.py --draw          # draw anew from the code as it is (all results are lost)

drawn.jsonl holds them, one a line: module, cell, operator, the old text and the new, and what found it (`by`): null is not run
yet, '' is not found. One that is not found has a `reason`: why nobody can see it. A place is as likely as any other, so a module
with many places gives many, and each prefix of the list is a fair sample. A judge that hangs has found the fault."""
import argparse, ast, copy, json, os, random, re, resource, signal, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import run

FILE, N, SEED = run.HERE/'drawn.jsonl', 200, 0
CPU, WALL = dict(page=90, tests=90), 1200           # seconds a judge may take; processor time, so that a busy machine changes nothing
MESSAGES = {'print', 'warn', 'say', 'InputError', 'set_description', 'set_postfix'}
# Tests of what stands around the library, those that start many processes, and those that need the checks of types that tests/conftest.py sets.
ELSEWHERE = {'browser', 'site', 'pages', 'package', 'gates', 'github', 'bibliography', 'benchmarks', 'mutants', 'types', 'gpu_script',
             'processes', 'stop_anywhere', 'hub', 'logs', 'soak', 'systems', 'generated'}

# How a figure looks is judged by eye, and the order of what `min` and `max` compare by nobody.
LOOKS = set('color c fontsize lw ls linewidth linestyle marker ms cmap zorder path_effects frameon loc ncols figsize dpi ha va rotation pad '
            'facecolor edgecolor ec fc label title weight'.split())
NO_ORDER = {'min', 'max'}

COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
           ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
              ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}


def is_text(n): return isinstance(n, ast.JoinedStr) or isinstance(n, ast.Constant) and isinstance(n.value, str)

def called(n):
    "The last name of what a call calls."
    f = n.func
    return f.attr if isinstance(f, ast.Attribute) else f.id if isinstance(f, ast.Name) else ''

def changed(n, **new):
    n = copy.copy(n)
    for k,v in new.items(): setattr(n, k, v)
    return n


def variants(n):
    "The faults that fit at a node, as (operator, new node)."
    match n:
        case ast.Compare():
            yield 'comparison', changed(n, ops=[COMPARE[type(n.ops[0])](), *n.ops[1:]])
        case ast.BinOp() if type(n.op) in ARITHMETIC and not (is_text(n.left) or is_text(n.right)):
            yield 'arithmetic', changed(n, op=ARITHMETIC[type(n.op)]())
        case ast.BoolOp():
            yield 'and/or', changed(n, op=ast.Or() if isinstance(n.op, ast.And) else ast.And())
        case ast.Constant(value=bool()):
            yield 'True/False', ast.Constant(not n.value)
        case ast.Constant(value=int() | float()):
            for d in (1, -1): yield f'number {d:+}', ast.Constant(n.value+d)
        case ast.UnaryOp(op=ast.Not()):
            yield 'not', n.operand
        case ast.Call():
            for i in range(len(n.args)-1):
                pair = n.args[i:i+2]
                same = called(n) in NO_ORDER or ast.dump(pair[0]) == ast.dump(pair[1])
                if not same and not any(isinstance(a, ast.Starred) for a in pair):
                    yield 'arguments swapped', changed(n, args=[*n.args[:i], n.args[i+1], n.args[i], *n.args[i+2:]])
            for i,k in enumerate(n.keywords):
                if k.arg and k.arg not in LOOKS: yield 'keyword dropped', changed(n, keywords=n.keywords[:i]+n.keywords[i+1:])
        case ast.Return(value=ast.expr()) if not (isinstance(n.value, ast.Constant) and n.value.value is None):
            yield 'return None', ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()): yield 'call dropped', ast.Pass()
        case ast.Break(): yield 'break/continue', ast.Continue()
        case ast.Continue(): yield 'break/continue', ast.Break()


def nodes(n):
    "The nodes below one where a fault would be one of the code: no types, no texts, nothing that is only said."
    if isinstance(n, (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom, ast.Assert)): return
    if isinstance(n, ast.Call) and called(n) in MESSAGES: return
    if isinstance(n, ast.keyword) and n.arg in LOOKS: return
    if isinstance(n, ast.Expr) and (is_text(n.value) or isinstance(n.value, ast.Call) and called(n.value) in MESSAGES): return
    if isinstance(n, ast.Assign) and any(getattr(t, 'id', '') == '__all__' for t in n.targets): return
    yield n
    for name,value in ast.iter_fields(n):
        if name in ('annotation', 'returns', 'decorator_list', 'type_comment'): continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST): yield from nodes(child)


def lines_with(source, n, new):
    "The lines of a node, as they are and with the new node in its place; None where the text is not one of its own."
    rows = source.splitlines()[n.lineno-1:n.end_lineno]
    first, last = rows[0].encode()[:n.col_offset].decode(), rows[-1].encode()[n.end_col_offset:].decode()
    text = ast.unparse(ast.fix_missing_locations(new))
    return '\n'.join(rows), first + (f'({text})' if isinstance(n, ast.expr) else text) + last


def places(root=run.ROOT):
    "Every fault that could be drawn, in the order of pages, cells and text."
    for page in sorted((root/'nbs').glob('[0-9][0-9]_*.ipynb')):
        for cell in run.code_cells(json.loads(page.read_text(encoding='utf-8'))):
            source = ''.join(cell['source'])
            if not re.match(r'#\| *export[is]?\b', source): continue
            for n in nodes(ast.parse(source)):
                for how,new in variants(n):
                    old, text = lines_with(source, n, new)
                    if source.count(old) == 1: yield dict(module=page.stem[3:], cell=cell['id'], line=n.lineno, how=how, before=old, after=text)


def draw(): return [dict(n=k, **p, by=None, says='') for k,p in enumerate(random.Random(SEED).sample([*places()], N))]

def read(): return [json.loads(x) for x in FILE.read_text(encoding='utf-8').splitlines()]

def write(rows):
    tmp = FILE.with_suffix('.tmp')
    tmp.write_text(''.join(json.dumps(r, ensure_ascii=False)+'\n' for r in rows), encoding='utf-8')
    tmp.replace(FILE)


def put_in(m, root):
    "Change the cell of the page and its copy in the module; returns a function that puts them back, or None where the code has moved on."
    files = [*(root/'nbs').glob(f"[0-9][0-9]_{m['module']}.ipynb"), root/'recon_nb'/f"{m['module']}.py"]
    saved = [f.read_bytes() for f in files]
    page, module = json.loads(saved[0]), saved[1].decode()
    cell, = [c for c in page['cells'] if c['id'] == m['cell']]
    start = module.index(f"#{m['cell']}\n")
    end = module.find('\n# %% ', start)
    chunk, source = module[start:end if end > 0 else None], ''.join(cell['source'])
    if (source.count(m['before']), chunk.count(m['before'])) != (1, 1): return None
    cell['source'] = source.replace(m['before'], m['after'])
    files[0].write_text(json.dumps(page), encoding='utf-8')
    files[1].write_text(module[:start] + chunk.replace(m['before'], m['after']) + module[start+len(chunk):], encoding='utf-8')
    def put_back():
        for f,b in zip(files, saved): f.write_bytes(b)
    return put_back


def tests_of(module, root=run.ROOT):
    "The test files for a module: that of its name first, then what callers pass on, then those that take most names from it; two at most, and those against earlier survivors."
    from recon_nb import _where
    scores = {}
    for f in sorted((root/'tests').glob('test_*.py')):
        if (name := f.stem[5:]) in ELSEWHERE: continue
        text = f.read_text(encoding='utf-8')
        found = [x for x in ast.walk(ast.parse(text)) if isinstance(x, ast.ImportFrom)]
        names = sum(len(x.names) for x in found if x.module == f'recon_nb.{module}') + text.count(f'recon_nb.{module}.')
        names += sum(module in (a.name, _where.get(a.name)) for x in found if x.module == 'recon_nb' for a in x.names)
        scores[f'tests/{f.name}'] = 1000*(name == module) + (100*(name == 'wiring')*(names > 0)) + names
    some = [t for t,s in sorted(scores.items(), key=lambda x: -x[1]) if s]
    seen = [t for t in ('tests/test_drawn_faults.py', 'tests/test_drawn_figures.py') if t in some]      # seconds long: against the kinds that survived before
    return seen + [t for t in some if t not in seen][:2]


def in_fork(f, out, cpu):
    "The exit status of `f` in a process of its own, whose output goes into a file; None if it took too long."
    if not (pid := os.fork()):
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)               # which a shell's background job ignores
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu+5))
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for k in (1, 2): os.dup2(fd, k)
        try: rc = f()
        except BaseException as e: rc = print(f'{type(e).__name__}: {e}') or 1
        sys.stdout.flush()
        os._exit(rc)
    end = time.monotonic()+WALL
    while not (done := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < end: time.sleep(.1)
    try: os.killpg(pid, signal.SIGKILL)           # with whatever it has started
    except ProcessLookupError: pass
    status = os.waitstatus_to_exitcode(done[1] if done[0] else os.waitpid(pid, 0)[1])
    return None if status in (-signal.SIGXCPU, -signal.SIGKILL) else status


def ask(root, number, judge):
    "What a page or a test file says where it fails, or '' if it passes. Libraries are there already, and the modules from a number on are imported anew."
    page, out = judge.endswith('.ipynb'), root.parent/'out.txt'
    def work():
        sys.dont_write_bytecode = True
        run.forget(root, number)
        if page:
            from nbdev.test import test_nb
            os.chdir((root/judge).parent)
            return 0 if test_nb(root/judge, skip_flags=run_flags, showerr=True)[0] else 1
        import pytest
        return int(pytest.main(['-x', '--tb=short', '--noconftest', '-m', 'not slow', '-p', 'no:cacheprovider', judge]))
    rc = in_fork(work, out, CPU['page' if page else 'tests'])
    if rc is None: return 'no end in time'
    if rc == 0 or not page and rc == 5: return ''                            # 5: all its tests are slow ones
    lines = [re.sub(r'\x1b\[[\d;]*m', '', x).strip() for x in out.read_text(encoding='utf-8', errors='replace').splitlines()]
    said = [x.removeprefix('E ').strip() for x in lines if page and re.match(r'(\w+\.)*\w*(Error|Exception)\b', x) or x.startswith('E ')]
    return ((said or [x for x in lines if x] or ['?'])[-1 if page else 0])[:120]

run_flags = 'slow gpu net realdata browser'.split()


def judge_one(m, root, passed):
    "Put a fault in and ask its judges until one finds it. `passed` collects the judges that can pass."
    put_back, number, start = put_in(m, root), run.number_of(m['module'], root), time.monotonic()
    if not put_back: return dict(m, says='the code has changed: this one does not fit any more')
    try:
        for j in [f"nbs/{number:02d}_{m['module']}.ipynb", *tests_of(m['module'], root)]:
            if said := ask(root, number, j): return dict(m, by=j, says=said, seconds=round(time.monotonic()-start))
            passed.add(j)
    finally: put_back()
    return dict(m, by='', says='', seconds=round(time.monotonic()-start))


def void(rows, root, passed):
    "Whoever finds something must pass without any fault: what one that does not has found doesn't count."
    for j in sorted({r['by'] for r in rows if r['by']} - passed):
        said = ask(root, run.ALL, j)
        print(f'without a fault: {j} {said or "passes"}', flush=True)
        if said: rows = [dict(r, by=None, says='') if r['by'] == j else r for r in rows]
    return rows


def main(args):
    rows = draw() if args.draw or not FILE.exists() else read()
    write(rows)
    wanted = {r['n'] for r in rows if (r['n'] in args.numbers if args.numbers else r['by'] == '' if args.survivors else r['by'] is None)}
    passed, end = set(), time.monotonic()+60*args.minutes
    with tempfile.TemporaryDirectory() as d:
        root = run.copy_of_tree(Path(d).resolve()/'copy')
        for k in ('RECON_NB_DATA', 'PYTEST_ADDOPTS', 'RECON_NB_SLOW'): os.environ.pop(k, None)
        os.environ |= dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1', MPLBACKEND='Agg', RECON_NB_CACHE=f'{d}/cache', IN_TEST='1')
        run.preload(root)
        for k in range(len(rows)):
            if rows[k]['n'] not in wanted or time.monotonic() > end: continue
            rows[k] = judge_one(rows[k], root, passed)
            print(k, rows[k]['module'], rows[k]['how'], '|', 'SURVIVES' if rows[k]['by'] == '' else rows[k]['by'], rows[k]['says'], f"{rows[k].get('seconds')} s", flush=True)
            write(rows)
        if not args.unchecked: write(rows := void(rows, root, passed))
        os.chdir(run.ROOT)
    judged = [r for r in rows if r['by'] is not None]
    left = [r['n'] for r in judged if not r['by']]
    print(f'{len(judged)} of {len(rows)} judged, {len(left)} not found:', *left)
    return len(left) > len(judged)/10


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('numbers', nargs='*', type=int, help='judge these again')
    p.add_argument('--draw', action='store_true', help='draw anew')
    p.add_argument('--survivors', action='store_true', help='judge again what survived')
    p.add_argument('--minutes', type=float, default=1e9, help='begin none after so many')
    p.add_argument('--unchecked', action='store_true', help='do not ask at the end whether the judges pass without a fault')
    sys.exit(main(p.parse_args()))
