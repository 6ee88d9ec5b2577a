mov x10, x2
mov x11, x3
mov x8, #435
svc #0
cbnz x0, parent
loop:
ldr x8,[x10]
ldp x0,x1,[x10,#8]
ldp x2,x3,[x10,#24]
ldp x4,x5,[x10,#40]
svc #0
str x0,[x10,#64]
cmn x0,#4095
b.cs failed
ldr x9,[x10,#56]
tbz x9,#1,next
str x0,[x10,#80]
next:
add x10,x10,#72
b loop
failed:
ldr x9,[x10,#56]
tbnz x9,#0,next
str x10,[x11]
mov x0,#127
mov x8,#94
svc #0
parent:
ret
