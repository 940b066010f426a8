//! Where each parameter lies on a device.
//!
//! Parameters that are updated by the same rule lie end to end in one group: an update is then a few operations a
//! group, however many parameters there are. Muon's matrices of one shape lie end to end too, so that they are
//! one stack, whose products are batched.

use std::ops::Range;

use crate::train::config::OptimizerKind;
use crate::train::layout::Layout;

/// Groups are filled with zeros to a multiple of this: sums over them are taken of so many numbers, then of the
/// sums.
pub const LINE: usize = 1024;

/// What turns the gradient of a group into a change of its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// AdamW.
    AdamW,
    /// Muon.
    Muon,
}

/// Matrices of one shape, end to end in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// The first number.
    pub start: usize,
    /// Matrices.
    pub count: usize,
    /// Rows of each.
    pub rows: usize,
    /// Columns of each.
    pub columns: usize,
}

/// Parameters that are updated alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPlan {
    /// How they are updated.
    pub rule: Rule,
    /// Whether they decay.
    pub decays: bool,
    /// Numbers, those that fill the last line included.
    pub len: usize,
    /// For [`Rule::Muon`], all of the group's matrices.
    pub stacks: Vec<Stack>,
}

/// Where a parameter lies, or several of one matrix after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its group.
    pub group: usize,
    /// Its numbers in the group.
    pub range: Range<usize>,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Place {
    /// Two matrices that lie end to end as one, the rows of the second below those of the first.
    ///
    /// # Panics
    /// If they do not.
    fn with(&self, next: &Place) -> Place {
        assert!(self.group == next.group && self.range.end == next.range.start);
        assert!(self.shape.len() == 2 && self.shape[1] == next.shape[1]);
        Place {
            group: self.group,
            range: self.range.start..next.range.end,
            shape: vec![self.shape[0] + next.shape[0], self.shape[1]],
        }
    }
}

/// One of each parameter of a block.
#[derive(Debug, Clone)]
pub struct BlockParameters<T> {
    /// `[D]`
    pub attn_norm: T,
    /// `[2D, D]`: queries, then keys.
    pub query_key: T,
    /// `[D, D]`
    pub value: T,
    /// `[D, D]`
    pub attn_out: T,
    /// `[D]`
    pub ff_norm: T,
    /// `[F, D]`
    pub gate: T,
    /// `[F, D]`
    pub up: T,
    /// `[D, F]`
    pub ff_out: T,
}

/// One of each parameter of the network.
#[derive(Debug, Clone)]
pub struct Parameters<T> {
    /// `[V, D]`
    pub embedding: T,
    /// The blocks.
    pub blocks: Vec<BlockParameters<T>>,
    /// `[D]`
    pub final_norm: T,
    /// `[V, D]`; the embedding when tied.
    pub head: T,
}

/// The groups of a network, and where its parameters lie in them.
#[derive(Debug, Clone)]
pub struct Arrangement {
    /// The groups.
    pub groups: Vec<GroupPlan>,
    /// The parameters.
    pub parameters: Parameters<Place>,
    layout: Layout,
    /// By the layout's order.
    places: Vec<Place>,
}

impl Arrangement {
    /// The arrangement of a layout for an optimiser.
    pub fn new(layout: Layout, kind: OptimizerKind) -> Self {
        let mut groups = Vec::new();
        let mut places = vec![None; layout.parameters.len()];
        for (rule, decays) in [
            (Rule::Muon, true),
            (Rule::AdamW, true),
            (Rule::AdamW, false),
        ] {
            let mut members: Vec<usize> = (0..layout.parameters.len())
                .filter(|&index| {
                    let role = layout.parameters[index].role;
                    let is_muon = kind.is_muon(role);
                    is_muon == (rule == Rule::Muon) && role.decays() == decays
                })
                .collect();
            if members.is_empty() {
                continue;
            }
            if rule == Rule::Muon {
                // Stable: queries and keys of a block stay neighbours.
                members.sort_by_key(|&index| &layout.parameters[index].shape);
            }
            let mut end = 0;
            let mut stacks: Vec<Stack> = Vec::new();
            for index in members {
                let parameter = &layout.parameters[index];
                let start = end;
                end += parameter.range.len();
                places[index] = Some(Place {
                    group: groups.len(),
                    range: start..end,
                    shape: parameter.shape.clone(),
                });
                if let (Rule::Muon, &[rows, columns]) = (rule, &parameter.shape[..]) {
                    match stacks.last_mut() {
                        Some(stack) if (stack.rows, stack.columns) == (rows, columns) => {
                            stack.count += 1;
                        }
                        _ => stacks.push(Stack {
                            start,
                            count: 1,
                            rows,
                            columns,
                        }),
                    }
                }
            }
            groups.push(GroupPlan {
                rule,
                decays,
                len: end.next_multiple_of(LINE),
                stacks,
            });
        }
        let places: Vec<Place> = places.into_iter().flatten().collect();
        assert_eq!(places.len(), layout.parameters.len(), "each has a rule");
        Self {
            parameters: Self::by_name(&layout, &places),
            groups,
            layout,
            places,
        }
    }

    fn by_name(layout: &Layout, places: &[Place]) -> Parameters<Place> {
        let blocks = &places[1..1 + 9 * layout.blocks.len()];
        let blocks = blocks.chunks_exact(9).map(|of_block| BlockParameters {
            attn_norm: of_block[0].clone(),
            query_key: of_block[1].with(&of_block[2]),
            value: of_block[3].clone(),
            attn_out: of_block[4].clone(),
            ff_norm: of_block[5].clone(),
            gate: of_block[6].clone(),
            up: of_block[7].clone(),
            ff_out: of_block[8].clone(),
        });
        let head = match layout.head == layout.embedding {
            true => &places[0],
            false => &places[places.len() - 1],
        };
        Parameters {
            embedding: places[0].clone(),
            blocks: blocks.collect(),
            final_norm: places[1 + 9 * layout.blocks.len()].clone(),
            head: head.clone(),
        }
    }

    /// A flat buffer, by the layout, as the numbers of each group.
    pub fn split(&self, flat: &[f32]) -> Vec<Vec<f32>> {
        let mut groups: Vec<_> = self.groups.iter().map(|plan| vec![0.0; plan.len]).collect();
        for (parameter, place) in self.layout.parameters.iter().zip(&self.places) {
            let group = &mut groups[place.group];
            group[place.range.clone()].copy_from_slice(&flat[parameter.range.clone()]);
        }
        groups
    }

    /// The numbers of each group as a flat buffer, by the layout.
    pub fn join(&self, groups: &[Vec<f32>]) -> Vec<f32> {
        let mut flat = vec![0.0; self.layout.len()];
        for (parameter, place) in self.layout.parameters.iter().zip(&self.places) {
            let group = &groups[place.group];
            flat[parameter.range.clone()].copy_from_slice(&group[place.range.clone()]);
        }
        flat
    }
}
