// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A filter as the kernel takes it: a program that searches the calls' numbers.
//!
//! ```text
//!   the architecture is not x86-64 ─► the process is killed
//!   number < n?  ── yes ─► number < m? …        a tree of comparisons
//!        └─ no ──► number < o? ─ yes ─► a verdict, or looks at an argument first
//! ```
//!
//! When a thread enters a filter the kernel tries it on each call that there is, to
//! know which ones are allowed whatever their arguments. A list, which is what
//! `seccompiler` makes, is gone through to its end for most of them, where this takes
//! a few comparisons. The tests hold the two against each other.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// What comes of which calls; of all others, something else.
pub(super) type Rules = BTreeMap<u32, Verdict>;

/// What comes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is allowed.
    Allow,
    /// It is answered with "no such call".
    Absent,
    /// It is allowed if an argument is as one of these rules says.
    If(Vec<Rule>),
}

/// The low 32 bits of an argument, as far as they are in `mask`, are `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) value: u32,
}

impl Rule {
    /// The argument is this number.
    pub(super) fn is(argument: u8, value: u32) -> Self {
        Self::has(argument, u32::MAX, value)
    }

    /// These bits of the argument are so.
    pub(super) fn has(argument: u8, mask: u32, value: u32) -> Self {
        Self {
            argument,
            mask,
            value,
        }
    }
}

const ARCHITECTURE: u32 = 0xC000_003E;

/// Fields of `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
const ARGUMENT_SIZE: u32 = 8;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_NOT_BELOW: u16 = 0x35;
const RETURN: u16 = 0x06;

/// A stretch of calls with the same verdict begins at this number; without one they
/// are not in the rules.
type Step<'a> = (u32, Option<&'a Verdict>);

/// The filter that does `otherwise` at calls that are not in the rules, or not so.
pub(super) fn compile(rules: &Rules, otherwise: u32) -> BpfProgram {
    let mut steps: Vec<Step<'_>> = vec![(0, None)];
    for (call, verdict) in rules {
        // The gap that the call before left is none.
        steps.pop_if(|(from, _)| from == call);
        if steps
            .last()
            .is_none_or(|(_, before)| *before != Some(verdict))
        {
            steps.push((*call, Some(verdict)));
        }
        steps.push((call.saturating_add(1), None));
    }
    let mut program = vec![
        statement(LOAD, ARCHITECTURE_AT),
        jump(JUMP_IF_EQUAL, ARCHITECTURE, 1, 0),
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, NUMBER_AT),
    ];
    tree(&steps, otherwise, &mut program);
    program
}

fn tree(steps: &[Step<'_>], otherwise: u32, program: &mut BpfProgram) {
    let (left, right) = steps.split_at(steps.len() / 2);
    let Some((first, verdict)) = right.first() else {
        return program.push(statement(RETURN, otherwise));
    };
    if left.is_empty() {
        return end(*verdict, otherwise, program);
    }
    let start = program.len();
    tree(left, otherwise, program);
    let length = program.len() - start;
    let mut branch = jump(JUMP_IF_NOT_BELOW, *first, 0, 0);
    if let Ok(length) = u8::try_from(length) {
        branch.jt = length;
    } else {
        // Too far for a comparison's own jump. The kernel takes no program that is
        // too long for this one's.
        branch.jf = 1;
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        program.insert(start, statement(JUMP, length));
    }
    program.insert(start, branch);
    tree(right, otherwise, program);
}

fn end(verdict: Option<&Verdict>, otherwise: u32, program: &mut BpfProgram) {
    let rules = match verdict {
        None => return program.push(statement(RETURN, otherwise)),
        Some(Verdict::Allow) => {
            return program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
        }
        Some(Verdict::Absent) => {
            let action = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
            return program.push(statement(RETURN, action));
        }
        Some(Verdict::If(rules)) => rules,
    };
    for rule in rules {
        let at = ARGUMENTS_AT + ARGUMENT_SIZE * u32::from(rule.argument);
        program.push(statement(LOAD, at));
        if rule.mask != u32::MAX {
            program.push(statement(AND, rule.mask));
        }
        program.push(jump(JUMP_IF_EQUAL, rule.value & rule.mask, 0, 1));
        program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    }
    program.push(statement(RETURN, otherwise));
}

fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// So many instructions are skipped if the comparison holds, and if not.
fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    };

    use super::super::{Kind, calls};
    use super::*;

    const TRAP: u32 = libc::SECCOMP_RET_TRAP;

    /// What the kernel does at a call.
    fn run(program: &[sock_filter], architecture: u32, call: u32, args: [u64; 6]) -> u32 {
        let mut data = [0; 16];
        (data[0], data[1]) = (call, architecture);
        for (n, arg) in args.into_iter().enumerate() {
            data[4 + 2 * n] = u32::try_from(arg & 0xFFFF_FFFF).unwrap();
            data[5 + 2 * n] = u32::try_from(arg >> 32).unwrap();
        }
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let either = |holds| usize::from(if holds { jt } else { jf });
            at += 1;
            match code {
                LOAD => loaded = data[usize::try_from(k).unwrap() / 4],
                AND => loaded &= k,
                JUMP => at += usize::try_from(k).unwrap(),
                JUMP_IF_EQUAL => at += either(loaded == k),
                JUMP_IF_NOT_BELOW => at += either(loaded >= k),
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// The same, as a well-known crate makes it; it knows no verdict but allowing.
    fn list(rules: &Rules) -> BpfProgram {
        let rule = |rule: &Rule| {
            let how = match rule.mask {
                u32::MAX => Eq,
                mask => MaskedEq(mask.into()),
            };
            let length = SeccompCmpArgLen::Dword;
            let value = rule.value.into();
            let condition = SeccompCondition::new(rule.argument, length, how, value).unwrap();
            SeccompRule::new(vec![condition]).unwrap()
        };
        let rules = rules.iter().filter_map(|(call, verdict)| match verdict {
            Verdict::Allow => Some((i64::from(*call), vec![])),
            Verdict::If(rules) if rules.is_empty() => None,
            Verdict::If(rules) => Some((i64::from(*call), rules.iter().map(rule).collect())),
            Verdict::Absent => None,
        });
        let (trap, allow) = (SeccompAction::Trap, SeccompAction::Allow);
        let filter = SeccompFilter::new(rules.collect(), trap, allow, TargetArch::x86_64);
        filter.unwrap().try_into().unwrap()
    }

    fn same(rules: &Rules, tree: &[sock_filter], list: &[sock_filter], call: u32, args: [u64; 6]) {
        let expected = match rules.get(&call) {
            Some(Verdict::Absent) => libc::SECCOMP_RET_ERRNO | 0x26,
            _ => run(list, ARCHITECTURE, call, args),
        };
        let found = run(tree, ARCHITECTURE, call, args);
        assert_eq!(found, expected, "{call} {args:x?} {rules:?}");
        assert!(tree.len() < 4096, "{}", tree.len());
    }

    fn verdicts() -> impl Strategy<Value = Verdict> {
        let rule = (
            0..6_u8,
            prop_oneof![Just(u32::MAX), Just(4), Just(0xFF00)],
            0..8_u32,
        );
        let rule = rule.prop_map(|(argument, mask, value)| Rule::has(argument, mask, value & mask));
        prop_oneof![
            3 => Just(Verdict::Allow),
            1 => Just(Verdict::Absent),
            1 => prop::collection::vec(rule, 0..6).prop_map(Verdict::If),
        ]
    }

    proptest! {
        #[test]
        fn the_tree_allows_what_a_list_does(
            rules in prop::collection::btree_map(0..400_u32, verdicts(), 0..120),
            call in prop_oneof![0..401_u32, any::<u32>()],
            args in prop::array::uniform6(prop_oneof![0..8_u64, any::<u64>()]),
        ) {
            same(&rules, &compile(&rules, TRAP), &list(&rules), call, args);
        }
    }

    #[test]
    fn each_kind_of_thread_may_do_what_a_list_would_let_it() {
        for kind in Kind::ALL {
            let rules = calls::of(kind);
            let (tree, list) = (compile(&rules, TRAP), list(&rules));
            let agree = |call, args| same(&rules, &tree, &list, call, args);
            for call in 0..600 {
                agree(call, [0; 6]);
                agree(call, [u64::MAX; 6]);
                let Some(Verdict::If(rules)) = rules.get(&call) else {
                    continue;
                };
                for rule in rules {
                    let value = u64::from(rule.value);
                    for value in [value, value ^ 1, value | 1 << 32, value.wrapping_sub(1)] {
                        let mut args = [0; 6];
                        args[usize::from(rule.argument)] = value;
                        agree(call, args);
                    }
                }
            }
        }
    }

    #[test]
    fn every_number_of_a_few_calls_gets_its_verdict() {
        let rules = Rules::from([
            (0, Verdict::Allow),
            (1, Verdict::Allow),
            (2, Verdict::Absent),
            (3, Verdict::If(vec![Rule::is(1, 7)])),
            (4, Verdict::Allow),
            (9, Verdict::Absent),
        ]);
        for call in (0..12).chain([u32::MAX, 0x4000_0000]) {
            for args in [[0; 6], [0, 7, 0, 0, 0, 0], [0, 7 | 1 << 32, 0, 0, 0, 0]] {
                same(&rules, &compile(&rules, TRAP), &list(&rules), call, args);
            }
        }
    }

    #[test]
    fn calls_of_another_architecture_end_the_process() {
        let program = compile(&Rules::from([(0, Verdict::Allow)]), TRAP);
        let i386 = 0x4000_0003;
        let killed = libc::SECCOMP_RET_KILL_PROCESS;
        assert_eq!(run(&program, i386, 0, [0; 6]), killed);
        let allowed = libc::SECCOMP_RET_ALLOW;
        assert_eq!(run(&program, ARCHITECTURE, 0, [0; 6]), allowed);
    }

    #[test]
    fn most_calls_are_found_in_few_steps() {
        let allowed: Rules = (0..100).map(|n| (3 * n, Verdict::Allow)).collect();
        let program = compile(&allowed, TRAP);
        let longest = (0..400).map(|call| {
            let (mut at, mut steps) = (4, 0);
            while program[at].code != RETURN {
                let sock_filter { jt, jf, k, .. } = program[at];
                let holds = call >= k;
                at += 1 + match program[at].code {
                    JUMP => usize::try_from(k).unwrap(),
                    _ => usize::from(if holds { jt } else { jf }),
                };
                steps += 1;
            }
            steps
        });
        assert!(longest.max().unwrap() < 12);
    }
}
