//! Tables that hold several values a key, each key's values in an order of their own.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::slice;
use std::sync::Arc;

use crate::pmap::PMap;

/// The order of a key's values. Values that compare equal are the same entry.
pub(crate) trait Order<T> {
    fn compare(a: &T, b: &T) -> Ordering;
}

/// Sorted values, mostly one: cheap to clone, so that a node of the map that holds them is cheap to copy.
#[derive(Clone, Debug, Default)]
pub(crate) enum Few<T> {
    #[default]
    None,
    One(T),
    Many(Arc<Vec<T>>),
}

impl<T: Clone> Few<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::None => &[],
            Self::One(value) => slice::from_ref(value),
            Self::Many(values) => values,
        }
    }

    /// Puts a value in its place, instead of the equal one if there is one.
    pub(crate) fn insert<O: Order<T>>(&mut self, value: T) {
        match self {
            Self::None => *self = Self::One(value),
            Self::One(held) if O::compare(held, &value) == Ordering::Equal => *held = value,
            Self::One(held) => {
                let mut both = vec![held.clone(), value];
                both.sort_by(O::compare);
                *self = Self::Many(Arc::new(both));
            }
            Self::Many(values) => {
                let values = Arc::make_mut(values);
                match values.binary_search_by(|held| O::compare(held, &value)) {
                    Ok(at) => values[at] = value,
                    Err(at) => values.insert(at, value),
                }
            }
        }
    }

    /// Removes the value that is equal to this one.
    pub(crate) fn remove<O: Order<T>>(&mut self, value: &T) {
        match self {
            Self::None => {}
            Self::One(held) => {
                if O::compare(held, value) == Ordering::Equal {
                    *self = Self::None;
                }
            }
            Self::Many(values) => {
                let Ok(at) = values.binary_search_by(|held| O::compare(held, value)) else { return };
                let values = Arc::make_mut(values);
                values.remove(at);
                if let [last] = &values[..] {
                    *self = Self::One(last.clone());
                }
            }
        }
    }
}

/// A persistent map with several values a key, in the order `O`.
pub(crate) struct MultiMap<K, T, O> {
    map: PMap<K, Few<T>>,
    order: PhantomData<fn() -> O>,
}

impl<K, T, O> Clone for MultiMap<K, T, O> {
    fn clone(&self) -> Self {
        Self { map: self.map.clone(), order: PhantomData }
    }
}

impl<K, T, O> Default for MultiMap<K, T, O> {
    fn default() -> Self {
        Self { map: PMap::default(), order: PhantomData }
    }
}

impl<K: fmt::Debug, T: fmt::Debug, O> fmt::Debug for MultiMap<K, T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.map.fmt(f)
    }
}

impl<K: Hash + Eq + Clone, T: Clone, O: Order<T>> MultiMap<K, T, O> {
    pub(crate) fn get<Q>(&self, key: &Q) -> &[T]
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.map.get(key).map_or(&[], Few::as_slice)
    }

    pub(crate) fn insert(&mut self, key: K, value: T) {
        self.map.entry(key, || Few::None).insert::<O>(value);
    }

    pub(crate) fn remove(&mut self, key: &K, value: &T) {
        if self.get(key).is_empty() {
            return;
        }
        let few = self.map.entry(key.clone(), || Few::None);
        few.remove::<O>(value);
        if few.as_slice().is_empty() {
            self.map.remove(key);
        }
    }

    #[cfg(test)]
    pub(crate) fn keys(&self) -> usize {
        self.map.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct ByTens;
    impl Order<u32> for ByTens {
        fn compare(a: &u32, b: &u32) -> Ordering {
            (a / 10).cmp(&(b / 10))
        }
    }

    #[test]
    fn values_keep_their_order_and_equal_ones_replace_each_other() {
        let mut map = MultiMap::<&str, u32, ByTens>::default();
        for value in [30, 10, 20, 15, 31] {
            map.insert("k", value);
        }
        assert_eq!(map.get("k"), [15, 20, 31]);
    }

    #[test]
    fn a_key_without_values_is_gone() {
        let mut map = MultiMap::<&str, u32, ByTens>::default();
        map.insert("k", 10);
        map.insert("k", 20);
        map.remove(&"k", &11);
        map.remove(&"k", &55);
        assert_eq!(map.get("k"), [20]);
        map.remove(&"k", &20);
        map.remove(&"k", &20);
        assert_eq!((map.get("k"), map.keys()), (&[][..], 0));
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut map = MultiMap::<&str, u32, ByTens>::default();
        [10, 20, 30].into_iter().for_each(|v| map.insert("k", v));
        let before = map.clone();
        map.remove(&"k", &10);
        map.insert("k", 40);
        assert_eq!(before.get("k"), [10, 20, 30]);
        assert_eq!(map.get("k"), [20, 30, 40]);
    }
}
