// Cooperative matrices of 8 by 8, as Apple has them. A subgroup holds the sums of 32 tokens
// and 32 rows. The types of matrices stay in here, so that a test can put sums of its own in
// their place.
const SIDE = 8u;
const SIDES = 4u;  // matrices along 32 tokens or rows

alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = array<coop_mat8x8<f32, C>, SIDES * SIDES>;

// Adds the products of the columns at hand; the tokens and rows start at these places of
// workgroup memory.
fn multiply(sums: ptr<function, Sums>, token_at: u32, row_at: u32) {
    for (var k = 0u; k < STEP * 32u; k += SIDE) {
        var rows: array<Right, SIDES>;
        for (var n = 0u; n < SIDES; n++) {
            rows[n] = coopLoad<Right>(&weights[row_at + n * SIDE * PITCH + k], PITCH);
        }
        for (var m = 0u; m < SIDES; m++) {
            let some = coopLoadT<Left>(&tokens[token_at + m * SIDE * PITCH + k], PITCH);
            for (var n = 0u; n < SIDES; n++) {
                (*sums)[m * SIDES + n] = coopMultiplyAdd(some, rows[n], (*sums)[m * SIDES + n]);
            }
        }
    }
}

// Leaves the sums of matrix i, by tokens, in workgroup memory.
fn leave(sums: ptr<function, Sums>, i: u32, at: u32) {
    coopStoreT((*sums)[i], &results[at], SIDE);
}
