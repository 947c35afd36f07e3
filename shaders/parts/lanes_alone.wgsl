// Lanes: the groups of a row share nothing.
const_assert TURN == 4u || BESIDE == 0u;

// What is kept from a group to the next: nothing.
struct Fours {
    none: u32,
}

// The halves of two words.
fn halves_of(a: u32, b: u32) -> vec4<u32> { return vec4<u32>(a, a >> 16u, b, b >> 16u); }

// What lies beside the groups of four rows, of which the first has its group at `at`.
fn four_sides(at: u32) -> array<vec2<u32>, 4> {
    let lane = at % 8u;
    // Where the pieces of all 32 rows begin, in vectors.
    let pieces = at / 32u * 2u * BESIDE;
    var first: vec4<u32>;
    var second: vec4<u32>;
    switch BESIDE {
        case 1u: { first = vec4<u32>(word(pieces * 4u + lane)) >> vec4<u32>(0u, 8u, 16u, 24u); }
        case 2u: {
            let two = pieces * 4u + lane * 2u;
            first = halves_of(word(two), word(two + 1u));
        }
        case 4u: { first = scales[pieces + lane]; }
        case 6u: {
            let two = pieces * 4u + 32u + lane * 2u;
            first = scales[pieces + lane];
            second = halves_of(word(two), word(two + 1u));
        }
        case 8u: {
            first = scales[pieces + lane];
            second = scales[pieces + 8u + lane];
        }
        default: {}
    }
    return array(
        vec2<u32>(first.x, second.x),
        vec2<u32>(first.y, second.y),
        vec2<u32>(first.z, second.z),
        vec2<u32>(first.w, second.w),
    );
}

// Blocks of group `g` of a turn's rows, of which the first has its group at `at`. Only formats with nothing beside their
// groups take turns.
fn next_blocks(blocks: ptr<function, array<Block, TURN>>, fours: ptr<function, Fours>, at: u32, g: u32) {
    var sides = four_sides(at);
    for (var r = 0u; r < TURN; r++) {
        (*blocks)[r] = block_of(quants(at + r * NEXT_ROW), sides[r]);
    }
}
