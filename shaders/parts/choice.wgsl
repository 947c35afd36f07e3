// How the next token of a sequence is to be chosen: one record for each sequence slot.
struct Choice {
    scale: f32,        // 1 / temperature; 1 where the likeliest is taken
    top_k: u32,        // 0 keeps all
    top_p: f32,        // 1 keeps all
    cut: f32,          // scaled logits more than this below the largest are never chosen
    repetition: f32,
    presence: f32,
    frequency: f32,
    flags: u32,        // 1 by chance, 2 with penalties
    seed: vec2<u32>,
}

fn by_chance(c: Choice) -> bool { return (c.flags & 1u) != 0u; }

fn with_penalties(c: Choice) -> bool { return (c.flags & 2u) != 0u; }

// What a logit that is no number leaves as the largest of its run; true ones stay below.
const NOT_A_NUMBER = 2.0e38;

const LOWEST = -3.0e38;
