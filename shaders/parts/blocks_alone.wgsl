// Blocks: groups of a row share nothing.
fn block_after(before: Block, g: u32, k: u32) -> Block { return block(g, k); }
