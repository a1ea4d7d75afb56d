// libjpeg's decompressor as Clockwork calls it: the ABI of version 6.2, which libjpeg-turbo keeps.
//
// The wheels of Pillow bring the library without headers, so its structures are declared here. The library
// compares its version and the size of JpegDecompress with its own before it touches a structure; see
// load_jpeg().
#pragma once

#include <cstddef>

namespace clockwork::device::jpeg {

inline constexpr int VERSION = 62;
inline constexpr int GREY = 1, RGB = 2, YCC = 3;  // values of libjpeg's J_COLOR_SPACE
inline constexpr int HEADER_OK = 1;
inline constexpr std::size_t MESSAGE_BYTES = 200;  // libjpeg's JMSG_LENGTH_MAX

struct JpegDecompress;

struct JpegErrors {
    void (*error_exit)(JpegDecompress*);  // must not return
    void (*emit_message)(JpegDecompress*, int level);
    void (*output_message)(JpegDecompress*);
    void (*format_message)(JpegDecompress*, char* text);
    void (*reset)(JpegDecompress*);
    int code;
    union {
        int numbers[8];
        char text[80];
    } parameters;
    int trace_level;
    long warnings;
    const char* const* messages;
    int last_message;
    const char* const* more_messages;
    int first_more, last_more;
};

struct JpegProgress {
    void (*monitor)(JpegDecompress*);
    long pass_counter, pass_limit;
    int completed_passes, total_passes;
};

struct JpegSource {
    const unsigned char* next;
    std::size_t left;
    void (*init)(JpegDecompress*);
    int (*fill)(JpegDecompress*);
    void (*skip)(JpegDecompress*, long bytes);
    int (*resync)(JpegDecompress*, int);
    void (*term)(JpegDecompress*);
};

struct JpegComponent {
    int id, index, h_samples, v_samples, quantisation_table, dc_table, ac_table;
    unsigned width_in_blocks, height_in_blocks;
    int scaled_size;
    unsigned width, height;
    int is_needed, mcu_width, mcu_height, mcu_blocks, mcu_sample_width, last_column_width, last_row_height;
    void* quantisation;
    void* dct;
};

struct JpegDecompress {
    JpegErrors* errors;
    void* memory;
    JpegProgress* progress;
    void* client_data;
    int is_decompressor, global_state;
    JpegSource* source;
    unsigned width, height;
    int component_count, color_space, out_color_space;
    unsigned scale_num, scale_denom;
    double output_gamma;
    int buffered_image, raw_data_out, dct_method, fancy_upsampling, block_smoothing, quantize_colors, dither_mode;
    int two_pass_quantize, color_count, enable_1pass, enable_external, enable_2pass;
    unsigned output_width, output_height;
    int out_color_components, output_components, rec_outbuf_height, actual_color_count;
    unsigned char** colormap;
    unsigned output_scanline;
    int input_scan_number;
    unsigned input_row;
    int output_scan_number;
    unsigned output_row;
    int (*coefficient_bits)[64];
    void* quantisation_tables[4];
    void* dc_tables[4];
    void* ac_tables[4];
    int data_precision;
    JpegComponent* components;
    int progressive, arithmetic;
    unsigned char arith_dc_l[16], arith_dc_u[16], arith_ac_k[16];
    unsigned restart_interval;
    int saw_jfif;
    unsigned char jfif_major, jfif_minor, density_unit;
    unsigned short x_density, y_density;
    int saw_adobe;
    unsigned char adobe_transform;
    int ccir601;
    void* markers;
    int max_h, max_v, min_dct_size;
    unsigned total_rows;
    unsigned char* range_limit;
    int scan_component_count;
    void* scan_components[4];
    unsigned mcus_per_row, mcu_rows;
    int mcu_blocks;
    int mcu_membership[10];
    int ss, se, ah, al;
    int unread_marker;
    void* modules[11];
};

// The functions of the library.
struct JpegLibrary {
    JpegErrors* (*std_error)(JpegErrors*) = nullptr;
    void (*create)(JpegDecompress*, int version, std::size_t bytes) = nullptr;
    int (*read_header)(JpegDecompress*, int require_image) = nullptr;
    int (*start)(JpegDecompress*) = nullptr;
    unsigned (*read_scanlines)(JpegDecompress*, unsigned char** rows, unsigned count) = nullptr;
    int (*resync)(JpegDecompress*, int) = nullptr;
    void (*destroy)(JpegDecompress*) = nullptr;
};

}  // namespace clockwork::device::jpeg
