// Blocks: eight groups of a row share the scales of a superblock.

// Group `g` (counted over all rows) of 32 weights, the one at `k` of its row.
fn block(g: u32, k: u32) -> Block {
    let at = super_of(g);
    let q = quants_of(g, k, QUANTS);
    var apart: vec2<u32>;
    if (APART > 0u) {
        apart.x = super_word(at, WORDS, 5u + k % 8u * APART);
    }
    if (APART > 1u) {
        apart.y = super_word(at, WORDS, 6u + k % 8u * APART);
    }
    let head = super_word(at, WORDS, 0u);
    let shares = super_word(at, WORDS, 1u + k % 8u / SHARED_BY) >> (32u / SHARED_BY * k);
    return block_of(q, apart, head, shares);
}
