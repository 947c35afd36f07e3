// Lanes: eight groups of a row share the scales of a superblock.
const_assert TURN == 4u;

// Of the superblocks of four rows, which is kept from a group to the next: the first words and those for scales.
struct Fours {
    heads: vec4<u32>,
    shares: vec4<u32>,
}

// Word `i` of the superblocks of four rows, of which the first has a group at `at`.
fn four_words(at: u32, i: u32) -> vec4<u32> { return scales[(super_of(at) / 32u * WORDS + i) * 8u + at % 8u]; }

// Blocks of group `g` of four rows, of which the first has its group at `at`.
fn next_blocks(blocks: ptr<function, array<Block, TURN>>, fours: ptr<function, Fours>, at: u32, g: u32) {
    if (g % 8u == 0u) {
        (*fours).heads = four_words(at, 0u);
    }
    (*fours).shares >>= vec4<u32>(32u / SHARED_BY);
    if (g % SHARED_BY == 0u) {
        (*fours).shares = four_words(at, 1u + g % 8u / SHARED_BY);
    }
    var apart: array<vec4<u32>, 2>;
    for (var i = 0u; i < APART; i++) {
        apart[i] = four_words(at, 5u + g % 8u * APART + i);
    }
    var two: array<vec4<u32>, 2>;
    if (QUANTS == 8u) {
        two[0] = w[at / 32u * 16u + at % 8u];
        two[1] = w[at / 32u * 16u + at % 8u + 8u];
    }
    for (var r = 0u; r < 4u; r++) {
        var q = vec4<u32>(two[0][r], two[1][r], 0u, 0u);
        if (QUANTS == 16u) {
            q = w[at + r * NEXT_ROW];
        }
        (*blocks)[r] = block_of(q, vec2<u32>(apart[0][r], apart[1][r]), (*fours).heads[r], (*fours).shares[r]);
    }
}
