// Memory for records that come and go with every request: slabs with a free list, and a map from numbers to
// objects.
//
// In a steady state nothing here calls the allocator: an object that was given back is handed out again, with
// the capacity of its vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "scheduler/archive.h"

namespace clockwork {

// Objects of one type at addresses that never change. T has `slot` (a small number, for tables beside the
// objects) and `generation` (how often the slot was given back). An object that was given back becomes T(),
// or is reset() where T has that function, to keep the capacity of its vectors.
template <typename T>
class Pool {
public:
    static constexpr std::uint32_t SLAB = 256;

    T* make() {
        if (free_.empty()) {
            grow();
        }
        T* entry = free_.back();
        free_.pop_back();
        return entry;
    }

    void give_back(T* entry) {
        if constexpr (requires { entry->reset(); }) {
            entry->reset();
        } else {
            std::uint32_t slot = entry->slot, generation = entry->generation;
            *entry = T();
            entry->slot = slot;
            entry->generation = generation;
        }
        ++entry->generation;
        free_.push_back(entry);
    }

    // Gives an object back at the next recycle(): until then, pointers to the object are valid.
    void retire(T* entry) { retired_.push_back(entry); }
    void recycle() {
        recycle([](const T&) {});
    }
    // Calls function(entry) for each retired object before giving it back.
    template <typename Function>
    void recycle(Function&& function) {
        for (T* record : retired_) {
            function(*record);
            give_back(record);
        }
        retired_.clear();
    }

    T* at(std::uint32_t slot) { return &slabs_[slot / SLAB][slot % SLAB]; }
    const T* at(std::uint32_t slot) const { return &slabs_[slot / SLAB][slot % SLAB]; }

    // Number of slots; every object's slot is below.
    std::uint32_t slot_count() const { return static_cast<std::uint32_t>(slabs_.size()) * SLAB; }

    // Archives the slots, and which of them are in use; is_used() answers from then on.
    void archive_slots(Archive& archive) {
        // a slab has at least the bytes of its generations
        std::size_t slabs = archive.count(slabs_.size(), SLAB);
        while (slabs_.size() < slabs) {
            grow();
        }
        for (const auto& slab : slabs_) {
            for (std::uint32_t place = 0; place < SLAB; ++place) {
                archive(slab[place].generation);
            }
        }
        std::vector<std::uint32_t> free;
        free.reserve(free_.size());
        for (const T* entry : free_) {
            free.push_back(entry->slot);
        }
        archive(free);
        is_used_.assign(slot_count(), true);
        free_.clear();
        for (std::uint32_t slot : free) {
            Archive::need(slot < slot_count() && is_used_[slot], "a free record is none");
            is_used_[slot] = false;
            free_.push_back(at(slot));
        }
    }
    // Archives the objects in use, by slot.
    void archive(Archive& archive) {
        for_each_used([&archive](T& entry) { entry.archive(archive); });
    }
    bool is_used(std::uint32_t slot) const { return slot < is_used_.size() && is_used_[slot]; }
    // Calls function(entry) for each object that was in use when archive_slots() was called.
    template <typename Function>
    void for_each_used(Function&& function) {
        for (std::uint32_t slot = 0; slot < is_used_.size(); ++slot) {
            if (is_used_[slot]) {
                function(*at(slot));
            }
        }
    }

private:
    void grow() {
        std::uint32_t first = slot_count();
        slabs_.push_back(std::make_unique<T[]>(SLAB));
        for (std::uint32_t place = SLAB; place-- > 0;) {  // the lowest slot is given out first
            slabs_.back()[place].slot = first + place;
            free_.push_back(&slabs_.back()[place]);
        }
    }

    std::vector<std::unique_ptr<T[]>> slabs_;
    std::vector<T*> free_;
    std::vector<T*> retired_;
    std::vector<bool> is_used_;  // whether each slot is in use
};

// Values kept beside the objects of a Pool, by their slots. A value is reset when its slot is given to
// another object.
template <typename T>
class Beside {
public:
    // Returns a reference that is valid until the next call of of().
    template <typename Owner>
    T& of(const Owner& owner) {
        if (owner.slot >= entries_.size()) {
            entries_.resize(owner.slot + 1);
        }
        Entry& entry = entries_[owner.slot];
        if (entry.generation != owner.generation) {
            entry = Entry();
            entry.generation = owner.generation;
        }
        return entry.value;
    }

    // Returns null if nothing was kept for the object yet.
    template <typename Owner>
    const T* find(const Owner& owner) const {
        bool is_its = owner.slot < entries_.size() && entries_[owner.slot].generation == owner.generation;
        return is_its ? &entries_[owner.slot].value : nullptr;
    }

    // Visits the objects in the order of slots, including those that are gone.
    template <typename Function>
    void for_each(Function&& function) {
        for (Entry& entry : entries_) {
            function(entry.value);
        }
    }

    // limit: number of slots.
    void archive(Archive& archive, std::uint32_t limit) {
        std::size_t size = archive.count(entries_.size());
        Archive::need(size <= limit, "something is kept of a record that is not there");
        entries_.resize(size);
        for (Entry& entry : entries_) {
            archive(entry.generation, entry.value);
        }
    }

private:
    struct Entry {
        T value{};
        std::uint32_t generation = 0;
    };

    std::vector<Entry> entries_;
};

// Objects by a 64-bit number: open addressing, linear probing, and no tombstones.
template <typename T>
class IdMap {
public:
    std::size_t size() const { return count_; }

    T* find(std::uint64_t id) const {
        if (count_ == 0) {
            return nullptr;
        }
        for (std::size_t place = home(id);; place = (place + 1) & mask_) {
            const Entry& entry = entries_[place];
            if (entry.value == nullptr || entry.id == id) {
                return entry.value;
            }
        }
    }

    // Inserts or replaces the entry of an id.
    void set(std::uint64_t id, T* value) {
        if ((count_ + 1) * 2 > entries_.size()) {
            grow();
        }
        std::size_t place = home(id);
        while (entries_[place].value != nullptr && entries_[place].id != id) {
            place = (place + 1) & mask_;
        }
        count_ += entries_[place].value == nullptr;
        entries_[place] = {id, value};
    }

    void erase(std::uint64_t id) {
        if (count_ == 0) {
            return;
        }
        std::size_t place = home(id);
        while (entries_[place].value != nullptr && entries_[place].id != id) {
            place = (place + 1) & mask_;
        }
        if (entries_[place].value == nullptr) {
            return;
        }
        --count_;
        // Entries behind the gap move up, unless they are at their home place: so a gap always ends a search.
        std::size_t gap = place;
        for (std::size_t next = (gap + 1) & mask_; entries_[next].value != nullptr; next = (next + 1) & mask_) {
            std::size_t wish = home(entries_[next].id);
            if (((next - wish) & mask_) >= ((next - gap) & mask_)) {
                entries_[gap] = entries_[next];
                gap = next;
            }
        }
        entries_[gap].value = nullptr;
    }

    // In arbitrary order: for sums and checks.
    template <typename Function>
    void for_each(Function&& function) const {
        for (const Entry& entry : entries_) {
            if (entry.value != nullptr) {
                function(static_cast<const T&>(*entry.value));
            }
        }
    }

private:
    struct Entry {
        std::uint64_t id = 0;
        T* value = nullptr;
    };

    // Two multiplications: after one, every n-th model of a long list would share a few places.
    std::size_t home(std::uint64_t id) const {
        std::uint64_t mixed = id * 0x9E3779B97F4A7C15ull;
        return static_cast<std::size_t>(((mixed ^ mixed >> 32) * 0x9E3779B97F4A7C15ull) >> 32) & mask_;
    }

    void grow() {
        std::vector<Entry> old = std::move(entries_);
        entries_.assign(old.empty() ? 8 : old.size() * 2, Entry{});
        mask_ = entries_.size() - 1;
        for (const Entry& entry : old) {
            if (entry.value != nullptr) {
                std::size_t place = home(entry.id);
                while (entries_[place].value != nullptr) {
                    place = (place + 1) & mask_;
                }
                entries_[place] = entry;
            }
        }
    }

    std::vector<Entry> entries_;
    std::size_t mask_ = 0;
    std::size_t count_ = 0;
};

}  // namespace clockwork
