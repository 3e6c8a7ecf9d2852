"""Natural loops of a control-flow graph."""


def hot_loops(successors: list[list[int]], hot: list[bool]) -> list[list[int]]:
    """Return the innermost loops that contain a hot instruction, in address order, each as sorted indices.

    successors: for each instruction, the indices of those that may execute next; execution starts at 0.
    """
    loops = [loop for loop in natural_loops(successors) if any(hot[i] for i in loop)]
    return sorted(sorted(loop) for loop in loops if not any(other < loop for other in loops))


def natural_loops(successors: list[list[int]]) -> list[set[int]]:
    """Return the loops of a graph of instructions: one per loop header, with all back edges to it merged."""
    blocks, follow = basic_blocks(successors)
    precede: list[list[int]] = [[] for _ in blocks]
    for b, targets in enumerate(follow):
        for target in targets:
            precede[target].append(b)
    dominators = _dominators(follow, precede)
    loops: dict[int, set[int]] = {}
    for tail, targets in enumerate(follow):
        for header in targets:
            if dominators[tail] >> header & 1:  # a back edge
                body = loops.setdefault(header, {header})
                waiting = [tail]
                while waiting:
                    block = waiting.pop()
                    if block not in body:
                        body.add(block)
                        waiting.extend(precede[block])
    return [{i for block in body for i in blocks[block]} for body in loops.values()]


def basic_blocks(successors: list[list[int]]) -> tuple[list[range], list[list[int]]]:
    """Return the basic blocks (entered only at the top), and for each the blocks that may follow."""
    count = len(successors)
    leaders = {0}
    for i, targets in enumerate(successors):
        if targets != [i + 1]:
            leaders.update(targets, [i + 1])
    starts = sorted(leader for leader in leaders if leader < count)
    blocks = [range(a, b) for a, b in zip(starts, [*starts[1:], count], strict=True)]
    number = {block.start: b for b, block in enumerate(blocks)}
    return blocks, [[number[target] for target in successors[block[-1]]] for block in blocks]


def _dominators(follow: list[list[int]], precede: list[list[int]]) -> list[int]:
    """Return, for each block, the blocks on every path to it as a bit set; 0 for unreachable blocks."""
    order, seen = [], {0}
    stack = [(0, iter(follow[0]))]
    while stack:
        block, targets = stack[-1]
        target = next((t for t in targets if t not in seen), None)
        if target is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(target)
            stack.append((target, iter(follow[target])))
    everything = (1 << len(follow)) - 1
    dominators = [everything if block in seen else 0 for block in range(len(follow))]
    dominators[0] = 1
    changed = True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            common = everything
            for before in precede[block]:
                if before in seen:
                    common &= dominators[before]
            common |= 1 << block
            changed |= common != dominators[block]
            dominators[block] = common
    return dominators
