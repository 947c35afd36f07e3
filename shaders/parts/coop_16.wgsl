// Cooperative matrices of 16 by 16, as NVIDIA and AMD have them. A subgroup holds the sums of 32 tokens
// and 32 rows. The types of matrices stay in here, so that a test can put sums of its own in
// their place.
const SIDE = 16u;
const SIDES = 2u;  // matrices along 32 tokens or rows

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = array<coop_mat16x16<f32, C>, SIDES * SIDES>;

// Adds the products of the columns at hand; the tokens and rows start at these places of
// workgroup memory. Sums are named one by one: where an index is a variable a compiler may keep
// all of them in memory.
fn multiply(sums: ptr<function, Sums>, token_at: u32, row_at: u32) {
    for (var k = 0u; k < STEP * 32u; k += SIDE) {
        let low_rows = coopLoad<Right>(&weights[row_at + k], PITCH);
        let high_rows = coopLoad<Right>(&weights[row_at + SIDE * PITCH + k], PITCH);
        let low = coopLoadT<Left>(&tokens[token_at + k], PITCH);
        (*sums)[0] = coopMultiplyAdd(low, low_rows, (*sums)[0]);
        (*sums)[1] = coopMultiplyAdd(low, high_rows, (*sums)[1]);
        let high = coopLoadT<Left>(&tokens[token_at + SIDE * PITCH + k], PITCH);
        (*sums)[2] = coopMultiplyAdd(high, low_rows, (*sums)[2]);
        (*sums)[3] = coopMultiplyAdd(high, high_rows, (*sums)[3]);
    }
}

// Leaves the sums of matrix i, by tokens, in workgroup memory.
fn leave(sums: ptr<function, Sums>, i: u32, at: u32) {
    switch i {
        case 0u: { coopStoreT((*sums)[0], &results[at], SIDE); }
        case 1u: { coopStoreT((*sums)[1], &results[at], SIDE); }
        case 2u: { coopStoreT((*sums)[2], &results[at], SIDE); }
        default: { coopStoreT((*sums)[3], &results[at], SIDE); }
    }
}
