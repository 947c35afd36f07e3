// Groups: a lane takes one at a time.
const SIDE = 1u;

alias Blocks = Block;

// The blocks of the groups from the one that lies at `at`.
fn blocks(at: u32) -> Blocks { return block(at); }

// What group `g`, whose activations are at `at` in workgroup memory, contributes to the sums of four rows.
fn add_groups(blocks: ptr<function, array<Blocks, 4>>, at: u32, g: u32, before: vec4<f32>) -> vec4<f32> {
    var v: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        v[i] = own(staged[at + i], g);
    }
    return four_rows(blocks, &v, before);
}
