// Lanes: a team is a subgroup, and the teams of a workgroup meet: at their barriers all must agree, so Team
// tells only what is the same for the whole workgroup, and Lane which of its teams is meant.
struct Team {
    first: u32,  // of this workgroup's teams, in the grid's x and y
    count: u32,  // teams in the grid's x and y
    here: u32,   // teams in a workgroup
    lanes: u32,  // invocations in a team
}

struct Lane {
    index: u32,  // of this invocation in its team
    team: u32,   // its team in the workgroup
    local: u32,  // of this invocation in the workgroup
}

fn sum_all(lane: Lane, v: f32) -> f32 { return subgroupAdd(v); }

fn sum_all4(lane: Lane, v: vec4<f32>) -> vec4<f32> { return subgroupAdd(v); }

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) index: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let first = (group.x + group.y * groups.x) * subgroups;
    let team = Team(first, groups.x * groups.y * subgroups, subgroups, size);
    kernel(group, team, Lane(index, subgroup, local));
}
