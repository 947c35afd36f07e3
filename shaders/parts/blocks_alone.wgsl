// Blocks: the groups of a row share nothing.

// Group `g` (counted over all rows) of 32 weights, the one at `k` of its row.
fn block(g: u32, k: u32) -> Block {
    let q = quants(g);
    return block_of(q, side_of(g, BESIDE));
}
