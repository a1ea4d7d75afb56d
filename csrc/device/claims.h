/* Who owns which page of an arena. The caller holds the lock of the device's hub. */
#ifndef CLOCKWORK_CLAIMS_H
#define CLOCKWORK_CLAIMS_H

#include <stdint.h>
#include <stdio.h>

/* What a model takes of an arena: runs of contiguous pages, that may lie anywhere. */
typedef struct cw_claim {
    int run_count;
    int64_t* run_pages;
    int64_t* run_starts; /* each run's first page; -1: none */
} cw_claim;

/* Nobody's again are the pages of a claim. */
static inline void cw_claim_free(cw_claim** owners, cw_claim* claim) {
    for (int run = 0; run < claim->run_count; run++) {
        for (int64_t page = 0; claim->run_starts[run] >= 0 && page < claim->run_pages[run]; page++)
            owners[claim->run_starts[run] + page] = NULL;
        claim->run_starts[run] = -1;
    }
}

/* Make pages the claim's, each run from its start on. 0; or -1 and a sentence, and it has none. */
static inline int cw_claim_pages(cw_claim** owners, int64_t page_count, cw_claim* claim, const int64_t* run_starts,
                                 char* text, size_t text_bytes) {
    for (int run = 0; run < claim->run_count; run++)
        claim->run_starts[run] = -1;
    for (int run = 0; run < claim->run_count; run++) {
        int64_t start = run_starts[run], pages = claim->run_pages[run];
        if (start < 0 || pages > page_count || start > page_count - pages) {
            snprintf(text, text_bytes, "run %d at page %lld of %lld pages does not lie in an arena of %lld", run,
                     (long long)start, (long long)pages, (long long)page_count);
            cw_claim_free(owners, claim);
            return -1;
        }
        for (int64_t page = start; page < start + pages; page++) {
            if (owners[page]) {
                snprintf(text, text_bytes, "page %lld is held by another model or run", (long long)page);
                cw_claim_free(owners, claim);
                return -1;
            }
        }
        for (int64_t page = start; page < start + pages; page++)
            owners[page] = claim;
        claim->run_starts[run] = start;
    }
    return 0;
}

#endif
