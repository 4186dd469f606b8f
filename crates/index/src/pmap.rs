//! A persistent hash map: a clone is one pointer, and a change to a clone copies the path to the entry.
//!
//! A trie over the hash, five bits a level. A node that nobody else holds is changed in place, so that building a map,
//! or changing many entries of a fresh clone, costs about what it does in an ordinary one.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};
use std::slice;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

const BITS: u32 = 5;
const WIDTH: u64 = 1 << BITS;
/// A leaf that grows beyond this becomes a branch.
const LEAF_MAX: usize = 12;
/// Below this the hash has no bits left and a leaf grows without bound.
const DEPTH_MAX: u32 = 12;

#[derive(Debug)]
pub(crate) struct PMap<K, V> {
    root: Arc<Node<K, V>>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    /// One bit for each child that there is, and these children in the order of their bits.
    Branch(u32, Vec<Arc<Node<K, V>>>),
}

fn hash_of<Q: Hash + ?Sized>(key: &Q) -> u64 {
    FxBuildHasher.hash_one(key)
}

/// The bit of the child that a hash leads to.
fn bit(hash: u64, depth: u32) -> u32 {
    1 << ((hash >> (BITS * depth)) % WIDTH)
}

/// The place among the children that there are.
fn rank(bits: u32, bit: u32) -> usize {
    (bits & (bit - 1)).count_ones() as usize
}

impl<K, V> Default for PMap<K, V> {
    fn default() -> Self {
        Self { root: Arc::new(Node::empty()), len: 0 }
    }
}

/// Not derived: neither a key nor a value is cloned.
impl<K, V> Clone for PMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> PMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = hash_of(key);
        let mut node = &*self.root;
        let mut depth = 0;
        loop {
            match node {
                Node::Leaf(pairs) => return pairs.iter().find(|(k, _)| k.borrow() == key).map(|(_, v)| v),
                Node::Branch(bits, children) => {
                    let bit = bit(hash, depth);
                    if bits & bit == 0 {
                        return None;
                    }
                    node = &children[rank(*bits, bit)];
                }
            }
            depth += 1;
        }
    }

    /// The value of a key, made first where there is none.
    pub(crate) fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let hash = hash_of(&key);
        let mut node = Arc::make_mut(&mut self.root);
        let mut depth = 0;
        loop {
            node.split_if_full(&key, depth);
            match node {
                Node::Branch(bits, children) => {
                    let bit = bit(hash, depth);
                    let at = rank(*bits, bit);
                    if *bits & bit == 0 {
                        *bits |= bit;
                        children.insert(at, Arc::new(Node::empty()));
                    }
                    node = Arc::make_mut(&mut children[at]);
                }
                Node::Leaf(pairs) => {
                    let found = pairs.iter().position(|(k, _)| *k == key);
                    let at = found.unwrap_or_else(|| {
                        pairs.push((key, make()));
                        self.len += 1;
                        pairs.len() - 1
                    });
                    return &mut pairs[at].1;
                }
            }
            depth += 1;
        }
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let mut value = Some(value);
        let held = self.entry(key, || value.take().expect("taken once"));
        if let Some(value) = value {
            *held = value;
        }
    }

    /// Removes a key, and the nodes that this leaves empty.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.get(key)?;
        let removed = Arc::make_mut(&mut self.root).remove(key, hash_of(key), 0);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// All entries, in no order that means anything.
    pub(crate) fn iter(&self) -> Iter<'_, K, V> {
        Iter { todo: vec![&*self.root], leaf: [].iter() }
    }
}

impl<K, V> Node<K, V> {
    fn empty() -> Self {
        Self::Leaf(Vec::new())
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Leaf(pairs) if pairs.is_empty())
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Node<K, V> {
    fn split_if_full(&mut self, key: &K, depth: u32) {
        let Self::Leaf(pairs) = self else { return };
        if pairs.len() < LEAF_MAX || depth >= DEPTH_MAX || pairs.iter().any(|(k, _)| k == key) {
            return;
        }
        let mut parts: [Vec<(K, V)>; WIDTH as usize] = std::array::from_fn(|_| Vec::new());
        for (k, v) in std::mem::take(pairs) {
            parts[bit(hash_of(&k), depth).trailing_zeros() as usize].push((k, v));
        }
        let mut bits = 0;
        let mut children = Vec::new();
        for (at, part) in parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            bits |= 1 << at;
            children.push(Arc::new(Self::Leaf(part)));
        }
        *self = Self::Branch(bits, children);
    }

    fn remove(&mut self, key: &K, hash: u64, depth: u32) -> Option<V> {
        match self {
            Self::Leaf(pairs) => {
                let at = pairs.iter().position(|(k, _)| k == key)?;
                Some(pairs.swap_remove(at).1)
            }
            Self::Branch(bits, children) => {
                let bit = bit(hash, depth);
                if *bits & bit == 0 {
                    return None;
                }
                let at = rank(*bits, bit);
                let child = Arc::make_mut(&mut children[at]);
                let removed = child.remove(key, hash, depth + 1);
                if child.is_empty() {
                    children.remove(at);
                    *bits &= !bit;
                }
                if children.is_empty() {
                    *self = Self::empty();
                }
                removed
            }
        }
    }
}

/// Depth first: what is still to be visited, and the leaf that is being read.
pub(crate) struct Iter<'a, K, V> {
    todo: Vec<&'a Node<K, V>>,
    leaf: slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            match self.todo.pop()? {
                Node::Leaf(pairs) => self.leaf = pairs.iter(),
                Node::Branch(_, children) => self.todo.extend(children.iter().rev().map(|c| &**c)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    impl<K: Hash + Eq + Clone, V: Clone> PMap<K, V> {
        /// How many nodes there are, and how many of them `other` holds as well.
        fn nodes_shared_with(&self, other: &Self) -> (usize, usize) {
            fn collect<K, V>(node: &Arc<Node<K, V>>, into: &mut Vec<*const Node<K, V>>) {
                into.push(Arc::as_ptr(node));
                if let Node::Branch(_, children) = &**node {
                    children.iter().for_each(|c| collect(c, into));
                }
            }
            let (mut mine, mut theirs) = (vec![], vec![]);
            collect(&self.root, &mut mine);
            collect(&other.root, &mut theirs);
            (mine.len(), mine.iter().filter(|n| theirs.contains(n)).count())
        }
    }

    fn numbers(n: u32) -> PMap<u32, u32> {
        let mut map = PMap::default();
        (0..n).for_each(|i| map.insert(i, i));
        map
    }

    #[test]
    fn a_change_copies_the_path_and_shares_the_rest() {
        let before = numbers(20_000);
        let mut after = before.clone();
        after.insert(7, 70);
        after.remove(&8);
        let (nodes, shared) = after.nodes_shared_with(&before);
        assert!(nodes > 1_000, "{nodes}");
        assert!(nodes - shared <= 8, "{} of {nodes} nodes were copied", nodes - shared);
        assert_eq!((before.get(&7), before.get(&8)), (Some(&7), Some(&8)));
        assert_eq!((after.get(&7), after.get(&8)), (Some(&70), None));
    }

    #[test]
    fn removing_all_leaves_nothing() {
        let mut map = numbers(5_000);
        (0..5_000).for_each(|i| assert_eq!(map.remove(&i), Some(i)));
        assert_eq!(map.len(), 0);
        assert!(map.root.is_empty());
    }

    #[test]
    fn keys_of_one_hash_live_together() {
        #[derive(Clone, Debug, PartialEq, Eq)]
        struct Same(u32);
        impl Hash for Same {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                state.write_u32(1);
            }
        }
        let mut map = PMap::default();
        (0..100).for_each(|i| map.insert(Same(i), i));
        assert!((0..100).all(|i| map.get(&Same(i)) == Some(&i)));
        assert_eq!(map.remove(&Same(50)), Some(50));
        assert_eq!((map.len(), map.get(&Same(50))), (99, None));
    }

    #[test]
    fn removing_what_is_not_there_copies_nothing() {
        let before = numbers(1_000);
        let mut after = before.clone();
        assert_eq!(after.remove(&5_000), None);
        let (nodes, shared) = after.nodes_shared_with(&before);
        assert_eq!(nodes, shared);
    }

    proptest! {
        #[test]
        fn it_behaves_as_an_ordinary_map(ops in prop::collection::vec((0u32..200, any::<bool>()), 0..600)) {
            let (mut map, mut ordinary) = (PMap::default(), HashMap::new());
            let mut snapshots = vec![];
            for (at, (key, inserts)) in ops.into_iter().enumerate() {
                if inserts {
                    map.insert(key, at);
                    ordinary.insert(key, at);
                } else {
                    prop_assert_eq!(map.remove(&key), ordinary.remove(&key));
                }
                if at % 50 == 0 {
                    snapshots.push((map.clone(), ordinary.clone()));
                }
            }
            snapshots.push((map, ordinary));
            for (map, ordinary) in snapshots {
                prop_assert_eq!(map.len(), ordinary.len());
                prop_assert_eq!(map.iter().map(|(k, v)| (*k, *v)).collect::<HashMap<_, _>>(), ordinary);
            }
        }
    }
}
