// Groups: a lane takes one at a time.
alias Blocks = Block;

// What a lane loads of a row for a turn: beyond the last group the last one, whose activations are zeros.
fn blocks(row: u32, turn: Turn) -> Blocks {
    let k = min(turn.first + turn.index, p.groups - 1u);
    return block(block_at(row, k), k);
}

// Where vector `i` of a turn's activations lies in workgroup memory, for teams of `lanes`.
fn place(i: u32, lanes: u32) -> u32 { return i / 8u * PITCH + i % 8u; }

// What a lane contributes to the sums of four rows in a turn.
fn add_groups(blocks: ptr<function, array<Blocks, 4>>, turn: Turn, before: vec4<f32>) -> vec4<f32> {
    if (!comes_along(turn.first + turn.index)) {
        return before;
    }
    var v: array<vec4<f32>, 8>;
    var all = vec2<f32>(0.0);
    for (var i = 0u; i < 8u; i++) {
        v[i] = staged[turn.index * PITCH + i];
        if (HAS_MIN) {
            all[select(0u, i / 4u, HALVES)] += staged_sums[turn.index * SUMS + i];
        }
    }
    return four_rows(blocks, &v, all, before);
}
