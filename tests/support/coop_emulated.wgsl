// In the place of `coop_16`: every invocation of a subgroup holds all sums, and adds up products
// one by one. For adapters without matrix units.
const SIDE = 16u;
const SIDES = 2u;

alias Sums = array<array<f32, SIDE * SIDE>, SIDES * SIDES>;

fn multiply(sums: ptr<function, Sums>, token_at: u32, row_at: u32) {
    for (var token = 0u; token < 32u; token++) {
        for (var row = 0u; row < 32u; row++) {
            var sum = 0.0;
            for (var k = 0u; k < STEP * 32u; k++) {
                sum += f32(tokens[token_at + token * PITCH + k]) * f32(weights[row_at + row * PITCH + k]);
            }
            (*sums)[token / SIDE * SIDES + row / SIDE][token % SIDE * SIDE + row % SIDE] += sum;
        }
    }
}

fn leave(sums: ptr<function, Sums>, i: u32, at: u32) {
    for (var n = 0u; n < SIDE * SIDE; n++) {
        results[at + n] = (*sums)[i][n];
    }
}
