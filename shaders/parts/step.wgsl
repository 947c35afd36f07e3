// The ragged batch that this step runs: everything that changes from step to step.
// Words: 0 tokens, 1 outputs, 2 start of the token records, 3 start of the output list,
// 4 start of the page tables, 5 pages in one sequence's table.
@group(1) @binding(0) var<storage, read> step: array<u32>;

fn n_tokens() -> u32 { return step[0]; }

fn n_outputs() -> u32 { return step[1]; }

// A token's record: vocabulary id, position in its sequence, sequence slot, unused.
fn token_id(t: u32) -> u32 { return step[step[2] + t * 4u]; }

fn token_position(t: u32) -> u32 { return step[step[2] + t * 4u + 1u]; }

fn token_sequence(t: u32) -> u32 { return step[step[2] + t * 4u + 2u]; }

// The token whose logits are wanted as output `i`.
fn output_token(i: u32) -> u32 { return step[step[3] + i]; }

// The page that holds positions [n PAGE, (n + 1) PAGE) of a sequence.
fn page_of(sequence: u32, n: u32) -> u32 { return step[step[4] + sequence * step[5] + n]; }
